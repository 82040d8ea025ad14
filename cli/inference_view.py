"""How the plan of a job that makes tokens looks in a terminal: what fits, how long it takes."""

from collections.abc import Iterator

from parctl.planner.plan import Plan
from parctl.planner.sizes import size_text


def inference_lines(plan: Plan) -> Iterator[str]:
    """Say how much context fits, and what a caller waits for; nothing for other tasks."""
    times = plan.time.get("inference")
    if times is None:
        return
    memory = plan.memory
    spec = plan.recipe.inference
    assert spec is not None
    most = spec.max_sequences
    context, replicas = memory["max_context"], plan.layout.axes.get("dp", 1)
    block = max(stage["block_bytes"] for stage in memory["stages"])
    yield (
        f"CONTEXT: {memory['num_blocks']:,} blocks of {memory['tokens_per_block']} tokens "
        f"({size_text(block)} on a rank) hold {memory['num_tokens']:,} tokens: "
        f"{sequences_text(memory['max_sequences'], context, most=most)}"
        f"{'' if replicas == 1 else f', on each of {replicas:,} replicas'}."
    )
    if "first_token_s" not in times:
        yield f"TIME: {times['basis']}."
        return
    prompt, output = times["prompt_tokens"], times["output_tokens"]
    yield (
        f"TIME: a prompt of {prompt:,} tokens alone: the first token after "
        f"{seconds_text(times['first_token_s'])}, then one every "
        f"{seconds_text(times['per_token_s'])} ({times['basis']})."
    )
    full = times["full"]
    yield (
        f"With {full['sequences']:,} such at once, {output:,} tokens out: one every "
        f"{seconds_text(full['per_token_s'])} each, {full['tokens_per_s']:,.4g} tokens/s per "
        f"replica."
    )


def sequences_text(held: int, context: int, *, most: int) -> str:
    """Say how many sequences run at once, and that it is not memory that binds where it is not.

    >>> sequences_text(44, 1024, most=64)
    '44 sequences of 1,024 at once'
    >>> sequences_text(65, 1024, most=4)
    '65 sequences of 1,024, of which `inference.max_sequences` lets 4 in at once'
    """
    text = f"{held:,} sequences of {context:,}"
    if most < held:
        return f"{text}, of which `inference.max_sequences` lets {most:,} in at once"
    return f"{text} at once"


def seconds_text(seconds: float) -> str:
    """Write a short time.

    >>> seconds_text(0.0109), seconds_text(2.5)
    ('10.9 ms', '2.5 s')
    """
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
