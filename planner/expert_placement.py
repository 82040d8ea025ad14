"""Which expert lives on which ep rank.

Every ep rank has equally many. With 4 experts on 2 ranks::

    block           0 1 | 2 3
    round-robin     0 2 | 1 3
    load-balanced   by measured load, layer by layer: the busiest expert first, each to the rank
                    with the least load that has room (LPT, 10.1137/0117039)

Neighbours of a block stay together, which suits groups of experts (node-limited routing). The plan
decides, so that every rank knows without asking. Imports the standard library only.
"""

from collections.abc import Sequence

from parctl.recipes.spec import ModelSpec, ParallelismSpec

SHOWN = 8  # ep ranks that the plan lists


def expert_order(num_experts: int, parallelism: ParallelismSpec, layer: int) -> tuple[int, ...]:
    """Experts of layer `layer` in the order of places: those of ep rank 0 first.

    Layers without a measurement, as those that predict further tokens, are placed in blocks.
    """
    ep = parallelism.ep or 1
    match parallelism.expert_placement:
        case "round-robin":
            return tuple(expert for rank in range(ep) for expert in range(rank, num_experts, ep))
        case "load-balanced":
            rows = parallelism.expert_load or ()
            if layer < len(rows) and rows[layer]:
                return tuple(expert for rank in balanced(rows[layer], ep) for expert in rank)
    return tuple(range(num_experts))


def balanced(load: Sequence[float], num_ranks: int) -> list[list[int]]:
    """Deal experts out by load, equally many to each rank.

    >>> balanced([9, 1, 8, 2], 2)
    [[0, 1], [2, 3]]
    """
    room = len(load) // num_ranks
    ranks: list[list[int]] = [[] for _ in range(num_ranks)]
    for expert in sorted(range(len(load)), key=lambda expert: -load[expert]):
        open_ranks = [rank for rank in ranks if len(rank) < room]
        least = min(open_ranks, key=lambda rank: sum(load[one] for one in rank))
        least.append(expert)
    return [sorted(rank) for rank in ranks]


def busiest(order: Sequence[int], load: Sequence[float], num_ranks: int) -> float:
    """Load of the busiest rank over the mean.

    >>> busiest([0, 1, 2, 3], [3, 3, 1, 1], 2)
    1.5
    """
    room = len(order) // num_ranks
    ranks = [sum(load[e] for e in order[i * room : (i + 1) * room]) for i in range(num_ranks)]
    return max(ranks) * num_ranks / sum(ranks) if sum(ranks) else 1.0


def explain_experts(
    model: ModelSpec, parallelism: ParallelismSpec, ranks: Sequence[Sequence[int]]
) -> tuple[str, ...]:
    """Say where experts are. `ranks` are the RANKs of every ep coordinate."""
    assert model.moe
    count, ep = model.moe.num_experts, parallelism.ep or 1
    if parallelism.expert_placement == "load-balanced":
        rows = [(i, row) for i, row in enumerate(parallelism.expert_load or ()) if sum(row)]
        gains = [
            (busiest(expert_order(count, parallelism, i), row, ep), busiest(range(count), row, ep))
            for i, row in rows
        ]
        now, before = (sum(column) / len(column) for column in zip(*gains, strict=True))
        return (
            "experts are placed layer by layer by measured load: the busiest ep rank has "
            f"{now:.2f} of the mean, in blocks {before:.2f}",
        )
    order = expert_order(count, parallelism, 0)
    room = count // ep
    parts = [
        f"{spans(order[i * room : (i + 1) * room])} on rank{'s' * (len(ranks[i]) > 1)} "
        f"{spans(ranks[i])}"
        for i in range(min(ep, SHOWN))
    ]
    more = f"; and so on for {ep} ep ranks" if ep > SHOWN else ""
    return (f"experts ({parallelism.expert_placement}): {'; '.join(parts)}{more}",)


def spans(numbers: Sequence[int]) -> str:
    """Shorten runs of numbers, and lists of more than four runs.

    >>> spans([0, 1, 2, 5]), spans([0, 2, 4, 6, 8, 10])
    ('0-2 5', '0 2 4 ... 10')
    """
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    shown = [f"{first}-{last}" if last > first else str(first) for first, last in runs]
    return " ".join(shown if len(shown) <= 4 else [*shown[:3], "...", shown[-1]])
