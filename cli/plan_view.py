"""How a plan looks in a terminal: groups and their links, the rank grid, memory, the reasons."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from parctl.cli.inference_view import inference_lines
from parctl.cli.plan_bars import memory_bars, step_bars
from parctl.planner.budget import Budget, budget_of, count_text
from parctl.planner.memory import TERMS
from parctl.planner.plan import Plan
from parctl.planner.sizes import distinct_size_texts, size_text
from parctl.topology.layout import Slot
from parctl.topology.placement.request import product_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

MOST_ROWS = 16  # nodes, or stages, that are shown one by one
HEAD, TAIL = 6, 2  # of a longer list
MOST_RANKS = 16  # per node


def show_plan(plan: Plan, console: "Console") -> None:
    """Print the whole plan. Lines are plain ASCII, so a pipe keeps them readable."""
    _say(headline(plan), console)
    if work := work_text(plan):
        _say(work, console)
    console.print()
    console.print(groups_table(plan, console.width))
    console.print()
    for line in rank_grid(plan):
        console.print(line, markup=False, no_wrap=True, overflow="ignore", crop=False)
    console.print()
    if stages := plan.memory.get("stages"):
        worst = plan.memory["worst_stage"]
        table = memory_table(stages, worst)
        unbounded = console.options.update(max_width=1000)
        if console.measure(table, options=unbounded).maximum > console.width:
            table = narrow_memory_table(stages, worst)
        console.print(table)
        ends = {0, worst, len(stages) - 1}
        shown = [stage for stage in stages if len(stages) <= HEAD or stage["stage"] in ends]
        for line in memory_bars(shown, plan.memory):
            console.print(line, markup=False, no_wrap=True, overflow="ignore", crop=False)
    for line in verdict(plan):
        _say(line, console)
    for line in (*time_lines(plan), *inference_lines(plan)):
        _say(line, console)
    console.print()
    console.print("Why:")
    for sentence in plan.layout.explain:
        _say(f"  - {sentence}", console)


def _say(text: str, console: "Console") -> None:
    # in a pipe a sentence is one line, so that grep finds it whole
    console.print(text, markup=False, soft_wrap=not console.is_terminal)


def headline(plan: Plan) -> str:
    """`llama-70b: fsdp(16) x tp(8) = 128 ranks on 16 nodes of h100:16x8`."""
    nodes = plan.layout.num_nodes
    return (
        f"{plan.recipe.name}: {product_text(plan.layout.axes)} ranks on {nodes:,} "
        f"node{'s' * (nodes != 1)} ({plan.topology['source']}), plan {plan.hash[:19]}"
    )


def work_text(plan: Plan) -> str | None:
    """Tokens and FLOPs of a step, for `task: train`."""
    if "tokens_per_step" not in plan.time:
        return None
    flops, count = plan.time["model_flops_per_token"], plan.time["micro_batches_per_step"]
    return (
        f"{plan.time['tokens_per_step']:,} tokens per step, {count:,} "
        f"micro-batch{'es' * (count != 1)} per rank, {flops / 1e9:,.4g} GFLOP per token\n"
        f"({plan.time['flops_convention']})"
    )


def groups_table(plan: Plan, width: int) -> "Table":
    """One row per axis: how many groups, the worst link of any of them, and what it spans."""
    table = plain_table("AXIS", "SIZE", "GROUPS", "LINK", "GB/S", "SCOPE", "NODES", "SENT PER STEP")
    if width < 80:
        table.padding = (0, 1, 0, 0)
    sent = plan.time.get("bytes_per_step") or {}
    for proof in plan.layout.proofs:
        if proof.size == 1 and proof.axis not in plan.layout.axes:
            continue  # what `ep` leaves of the data axes, when it leaves nothing
        table.add_row(
            proof.axis,
            f"{proof.size:,}",
            f"{proof.groups:,}",
            proof.worst_link,
            "?" if proof.bandwidth is None else f"{proof.bandwidth:g}",
            proof.scope,
            f"{proof.nodes_per_group:,}",
            size_text(sent[proof.axis]) if proof.axis in sent else "-",
        )
    return table


def rank_grid(plan: Plan) -> Iterator[str]:
    """Draw nodes as rows and groups of the innermost axis as brackets.

    ::

        node-0  [ 0  1  2  3] fsdp 0   [ 4  5  6  7] fsdp 1
    """
    layout = plan.layout
    inner = list(layout.axes)[-1]
    yield f"Ranks by node, [ ] is a {inner} group:"
    place = {rank: position for position, rank in enumerate(layout.ranks)}
    nodes = [list(slots) for _, slots in groupby(layout.slots, key=lambda slot: slot.node_rank)]
    width, name_width = len(str(layout.world_size - 1)), max(len(node[0].node) for node in nodes)
    for node in _shortened(nodes):
        if node is None:
            yield f"  {'...':<{name_width}}  {len(nodes) - HEAD - TAIL:,} more nodes"
            continue
        ordered = sorted(node, key=lambda slot: place[slot.rank])
        blocks = [
            _block(list(block), plan, place, width)
            for _, block in groupby(ordered, key=lambda slot: place[slot.rank] // _inner(plan))
        ]
        shown = blocks if len(blocks) <= 4 else [*blocks[:2], "...", blocks[-1]]
        yield f"  {node[0].node:<{name_width}}  {'   '.join(shown)}"


def _block(slots: Sequence[Slot], plan: Plan, place: dict[int, int], width: int) -> str:
    """One group, or the part of it that is on this node, with its coordinates."""
    ranks = [f"{slot.rank:>{width}}" for slot in slots]
    if len(ranks) > MOST_RANKS:
        ranks = [*ranks[:4], "...", ranks[-1]]
    size = _inner(plan)
    outer = place[slots[0].rank] // size
    label = []
    for axis, length in list(plan.layout.axes.items())[-2::-1]:
        outer, coordinate = divmod(outer, length)
        label.append(f"{axis} {coordinate}")
    if len(slots) < size:
        first, last = place[slots[0].rank] % size, place[slots[-1].rank] % size
        label.insert(0, f"{list(plan.layout.axes)[-1]} {first}-{last}")
    return f"[{' '.join(ranks)}] {' '.join(reversed(label))}".rstrip()


def _inner(plan: Plan) -> int:
    return list(plan.layout.axes.values())[-1]


def memory_table(stages: Sequence[dict[str, Any]], worst: int) -> "Table":
    """One row per pipeline stage and one column per term that any stage has."""
    terms = _terms(stages)
    table = plain_table("STAGE", "LAYERS", *(term.upper() for term in terms), "TOTAL PER RANK")
    for column in table.columns[1:]:
        column.justify = "right"
    for stage in _shortened(stages, keep=worst):
        if stage is None:
            table.add_row("...")
            continue
        table.add_row(
            _stage_name(stage, stages, worst),
            str(stage["layers"]),
            *(size_text(stage[term]) if stage[term] else "-" for term in terms),
            size_text(stage["total"]),
        )
    return table


def narrow_memory_table(stages: Sequence[dict[str, Any]], worst: int) -> "Table":
    """One row per term, for the first, the worst and the last stage."""
    shown = [stages[number] for number in sorted({0, worst, len(stages) - 1})]
    table = plain_table("STAGE", *(_stage_name(stage, stages, worst) for stage in shown))
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("LAYERS", *(str(stage["layers"]) for stage in shown))
    for term in _terms(stages):
        cells = (size_text(stage[term]) if stage[term] else "-" for stage in shown)
        table.add_row(term.upper(), *cells)
    table.add_row("TOTAL PER RANK", *(size_text(stage["total"]) for stage in shown))
    return table


def _terms(stages: Sequence[dict[str, Any]]) -> list[str]:
    terms = (*TERMS, "kv_cache")  # of training, and of inference
    return [term for term in terms if any(stage.get(term) for stage in stages)]


def _stage_name(stage: dict[str, Any], stages: Sequence[dict[str, Any]], worst: int) -> str:
    return f"{stage['stage']}{' worst' * (stage['stage'] == worst and len(stages) > 1)}"


def verdict(plan: Plan) -> Iterator[str]:
    """Say whether it fits, and what would."""
    memory = plan.memory
    if "stages" not in memory:
        yield f"Memory: {memory.get('reason', 'not estimated')}"
        return
    if memory["fits"] is None:
        needs = size_text(memory["total_bytes"])
        yield f"Needs {needs} per rank; the memory of the devices is unknown, so no verdict."
        return
    needs, room = distinct_size_texts(memory["total_bytes"], memory["usable_bytes"])
    usable = (
        f"{room} usable ({memory['usable_fraction']:.0%} of {size_text(memory['device_bytes'])})"
    )
    if memory["fits"]:
        yield f"FITS: needs {needs} per rank of {usable}."
        return
    from parctl.planner.fit import advice, devices_needed, smallest_changes

    yield f"DOES NOT FIT: needs {needs} per rank of {usable}."
    if plan.recipe.inference is not None:
        yield f"In its place: {advice(plan)}."
        return
    changes = smallest_changes(plan)
    for change in changes:
        yield f"Would fit: `{change.text}`"
    if not changes:
        count = devices_needed(plan)
        more = "" if count is None else f"; {count:,} devices would do"
        yield f"No change of one or two fields would fit{more}."


def time_lines(plan: Plan) -> Iterator[str]:
    """Say how long a step takes, what it is spent on and how sure that is."""
    basis, parts = plan.time.get("step_time_basis"), plan.time.get("step_parts_s")
    if basis is None:
        return
    if parts is None:
        yield f"TIME: {basis}."
        return
    step = plan.time["step_time_s"]
    rate = f"{plan.time['tokens_per_s_per_gpu']:,.4g} tokens/s per GPU"
    mfu = plan.time["mfu"]
    share = "" if mfu is None else f", MFU {mfu:.1%} of the {_peak_name(plan)} peak"
    yield f"TIME: {step:,.3g} s per step, {rate}{share} ({basis})."
    yield from step_bars(plan)
    budget = budget_of(plan)
    asked = plan.time.get("budget")
    if asked is not None:
        budget = Budget(**asked)
    if budget is not None:
        yield budget_text(budget)


def budget_text(budget: Budget) -> str:
    """What a training run takes in all."""
    days = budget.days
    time = f"{_digits(days)} days" if days >= 1 else f"{budget.seconds / 3600:.3g} hours"
    cost = "" if budget.cost is None else f", cost {_digits(budget.cost)}"
    return (
        f"For {count_text(budget.tokens)} tokens ({budget.steps:,} steps): {time}, "
        f"{_digits(budget.device_hours)} GPU-hours{cost}; restarts not counted."
    )


def _digits(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _peak_name(plan: Plan) -> str:
    assert plan.recipe.train is not None
    return plan.recipe.train.precision


def _shortened(rows: Sequence[Any], keep: int | None = None) -> Iterator[Any]:
    """All rows of a short list; of a long one its ends, with None for what is left out."""
    if len(rows) <= MOST_ROWS:
        yield from rows
        return
    shown = {*range(HEAD), *range(len(rows) - TAIL, len(rows)), *({keep} - {None})}
    gap = False
    for number, row in enumerate(rows):
        if number in shown:
            yield row
            gap = False
        elif not gap:
            yield None
            gap = True


def plain_table(*columns: str) -> "Table":
    """A table without lines, so that a pipe can take it apart."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
