"""Inference on one CPU rank beside `transformers.generate`, same weights, same run.

Llama of 29 million parameters (dim 512, 8 layers, 8 heads, 4 for keys and values, ffn 1536,
vocabulary 8192, tied), random weights, float32, greedy, one thread. Programs take turns; medians
are printed. Only tokens that a request asked for are counted. Tokens per CPU second hardly depend
on what else runs; the ratios are theirs.

    equal   prompts of 64 tokens, 64 new ones
    mixed   prompts of 16 to 192 tokens, outputs distributed exponentially (mean 48, at most 192)
    memory  the mixed ones in blocks, beside room for the longest context reserved for each; then
            in a quarter of the memory, where sequences are pre-empted
    prefix  time to the first token behind 768 tokens that were there before

Goals: 5x sequential generate at batch 64, no slower than its batches of 8, 1.3x static batching on
mixed lengths, less than 4% of the held memory empty, and at least 2x less than where it is
reserved.

    python -m benchmarks.inference [--rounds 3] [--parts speed memory prefix]
"""

import argparse
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from parctl.recipes.hf_config import read_hf_config
from parctl.recipes.models import complete_model
from parctl.runtime.inference.assemble import assemble
from parctl.runtime.inference.config import EngineConfig
from parctl.runtime.inference.engine import Engine, EngineStats
from parctl.runtime.inference.request import Request, Sampling
from parctl.runtime.inference.sampling import BatchSampler

VOCAB, MAX_CONTEXT, BLOCK = 8192, 1024, 8
NUM_MEMORY = 80  # requests
GOAL_SEQUENTIAL, GOAL_EIGHT, GOAL_STATIC, GOAL_WASTE, GOAL_RESERVED = 5.0, 1.0, 1.3, 0.04, 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A request: so many new tokens behind a prompt."""

    prompt: tuple[int, ...]
    num_new: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What became of wishes."""

    tokens: list[list[int]]
    seconds: float
    cpu_s: float
    stats: list[EngineStats]  # after each step
    first_token_s: float

    @property
    def tokens_per_s(self) -> float:
        return sum(map(len, self.tokens)) / self.seconds

    @property
    def tokens_per_cpu_s(self) -> float:
        return sum(map(len, self.tokens)) / self.cpu_s


def equal(count: int) -> list[Wish]:
    draw = random.Random(0)
    return [Wish(prompt=tokens(draw, 64), num_new=64) for _ in range(count)]


def mixed(count: int) -> list[Wish]:
    draw = random.Random(1)
    return [
        Wish(
            prompt=tokens(draw, draw.randint(16, 192)),
            num_new=min(1 + int(draw.expovariate(1 / 48)), 192),
        )
        for _ in range(count)
    ]


def tokens(draw: random.Random, count: int) -> tuple[int, ...]:
    return tuple(draw.randrange(VOCAB) for _ in range(count))


def save_model(folder: Path) -> None:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=512,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        intermediate_size=1536,
        max_position_embeddings=MAX_CONTEXT,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


def open_ours(folder: Path, **settings: Any) -> Engine:
    values, _ = read_hf_config(folder)
    model, faults = complete_model(values, "benchmark")
    assert model is not None, faults
    config = EngineConfig(
        **{"num_blocks": 64 * MAX_CONTEXT // BLOCK, "block_size": BLOCK, **settings}
    )
    return assemble(model, config, BatchSampler(), source=folder, dtype=torch.float32)


def open_theirs(folder: Path) -> Any:
    import transformers

    transformers.logging.set_verbosity_error()
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()


def serve(engine: Engine, wishes: Sequence[Wish]) -> Served:
    """Give the engine all wishes at once, and step until they are done."""
    made: list[list[int]] = [[] for _ in wishes]
    stats = []
    begin, cpu = time.perf_counter(), time.process_time()
    first = 0.0
    for index, wish in enumerate(wishes):
        sampling = Sampling(max_tokens=wish.num_new)
        engine.add(Request(id=str(index), prompt_tokens=wish.prompt, sampling=sampling))
    while engine.unfinished():
        for emitted in engine.step():
            first = first or time.perf_counter() - begin
            made[int(emitted.request_id)].append(emitted.token)
        stats.append(engine.stats())
    return Served(
        tokens=made,
        seconds=time.perf_counter() - begin,
        cpu_s=time.process_time() - cpu,
        stats=stats,
        first_token_s=first,
    )


def generate(model: Any, wishes: Sequence[Wish], batch: int) -> Served:
    """Let `transformers` do `batch` wishes at a time, each batch until its longest is done."""
    made: list[list[int]] = []
    begin, cpu = time.perf_counter(), time.process_time()
    for start in range(0, len(wishes), batch):
        own = wishes[start : start + batch]
        width = max(len(wish.prompt) for wish in own)
        padded = torch.tensor([[0] * (width - len(wish.prompt)) + [*wish.prompt] for wish in own])
        seen = torch.tensor(
            [[0] * (width - len(wish.prompt)) + [1] * len(wish.prompt) for wish in own]
        )
        with torch.inference_mode():
            out = model.generate(
                padded,
                attention_mask=seen,
                max_new_tokens=max(wish.num_new for wish in own),
                do_sample=False,
                pad_token_id=0,
            )[:, width:].tolist()
        made += [row[: wish.num_new] for row, wish in zip(out, own, strict=True)]
    return Served(
        tokens=made,
        seconds=time.perf_counter() - begin,
        cpu_s=time.process_time() - cpu,
        stats=[],
        first_token_s=0.0,
    )


def in_turns(rounds: int, programs: dict[str, Callable[[], Served]]) -> dict[str, list[Served]]:
    found: dict[str, list[Served]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            found[name].append(program())
    return found


def say(what: str, value: float, goal: float, *, unit: str = "x", low: bool = False) -> None:
    met = value <= goal if low else value >= goal
    print(f"{what}: {value:.2f}{unit} (goal {goal:g}{unit}, {'met' if met else 'missed'})")


def speed(folder: Path, rounds: int) -> None:
    theirs = open_theirs(folder)
    programs: dict[str, Callable[[], Served]] = {}
    for size in (1, 8, 64):
        ours = open_ours(folder, max_sequences=size, max_tokens_per_step=1024, prefix_cache=False)
        wishes = equal(max(size, 4))
        programs[f"equal, {size} at once, parctl"] = partial(serve, ours, wishes)
        programs[f"equal, {size} at once, transformers"] = partial(generate, theirs, wishes, size)
    some = mixed(128)  # `ours` is now the engine for 64
    programs["mixed, 64 at once, parctl"] = partial(serve, ours, some)
    programs["mixed, 64 at once, transformers"] = partial(generate, theirs, some, 64)
    programs["mixed, 1 at once, transformers"] = partial(generate, theirs, some[:12], 1)
    found = in_turns(rounds, programs)
    rates = {}
    for name, runs in found.items():
        rates[name] = median(one.tokens_per_cpu_s for one in runs)
        wall = median(one.tokens_per_s for one in runs)
        print(f"{name:<36} {wall:7.0f} tokens/s {rates[name]:7.0f} tokens per CPU second")
    ours_said = found["mixed, 64 at once, parctl"][0].tokens
    theirs_said = found["mixed, 64 at once, transformers"][0].tokens
    same = sum(a == b for a, b in zip(ours_said, theirs_said, strict=True))
    print(f"mixed: {same} of {len(some)} outputs equal")
    say(
        "64 at once beside one by one",
        rates["equal, 64 at once, parctl"] / rates["equal, 1 at once, transformers"],
        GOAL_SEQUENTIAL,
    )
    say(
        "8 at once beside a batch of 8",
        rates["equal, 8 at once, parctl"] / rates["equal, 8 at once, transformers"],
        GOAL_EIGHT,
    )
    say(
        "mixed lengths beside static batches",
        rates["mixed, 64 at once, parctl"] / rates["mixed, 64 at once, transformers"],
        GOAL_STATIC,
    )


def memory(folder: Path) -> None:
    wishes = mixed(NUM_MEMORY)
    room = 8 * MAX_CONTEXT  # tokens
    ours = open_ours(folder, num_blocks=room // BLOCK, max_sequences=NUM_MEMORY, prefix_cache=False)
    served = serve(ours, wishes)
    # while requests wait: memory is what limits
    busy = [one for one in served.stats if one.waiting] or served.stats
    waste = mean(one.waste for one in busy)
    held = mean(one.held_tokens / one.running for one in busy)
    reserved = 1 - held / MAX_CONTEXT
    at_once = mean(one.running for one in busy)
    print(
        f"room for {room:,} tokens: {at_once:.0f} at once, {room // MAX_CONTEXT} if reserved, "
        f"{served.stats[-1].preemptions} pre-emptions"
    )
    say("held memory that is empty", waste * 100, GOAL_WASTE * 100, unit="%", low=True)
    say("reserved memory that is empty, beside it", reserved / waste, GOAL_RESERVED)
    for kind in ("recompute", "swap"):
        short = open_ours(
            folder,
            num_blocks=room // BLOCK // 4,
            num_host_blocks=room // BLOCK,
            max_sequences=NUM_MEMORY,
            preemption=kind,
        )
        scarce = serve(short, wishes)
        same = sum(a == b for a, b in zip(scarce.tokens, served.tokens, strict=True))
        print(
            f"in a quarter of it, {kind}: {scarce.stats[-1].preemptions} pre-emptions, "
            f"{same} of {len(wishes)} outputs equal"
        )


def prefix(folder: Path, rounds: int) -> None:
    draw = random.Random(2)
    common = tokens(draw, 768)
    times: dict[bool, list[float]] = {True: [], False: []}
    engines = {kept: open_ours(folder, prefix_cache=kept) for kept in times}
    for number in range(rounds + 1):
        wish = Wish(prompt=(*common, *tokens(draw, 16)), num_new=2)
        for kept, engine in engines.items():
            first = serve(engine, [wish]).first_token_s
            if number > 0:  # the first fills the cache
                times[kept].append(first)
    with_cache, without = median(times[True]), median(times[False])
    print(
        f"first token behind 784 tokens, 768 of them common: {with_cache * 1e3:.0f} ms, without "
        f"the prefix cache {without * 1e3:.0f} ms: {without / with_cache:.1f}x"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parts = ("speed", "memory", "prefix")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory(prefix="parctl-bench-") as name:
        folder = Path(name)
        save_model(folder)
        if "speed" in options.parts:
            speed(folder, options.rounds)
        if "memory" in options.parts:
            memory(folder)
        if "prefix" in options.parts:
            prefix(folder, options.rounds)


if __name__ == "__main__":
    main()
