"""Pipeline stages: which layers each one holds, and on which pipeline rank it runs.

The slowest stage sets the pace of a pipeline, so layers are dealt out such that the heaviest stage
is as light as it can be. The head counts as the share of a layer that it holds in parameters. The
embedding takes memory but hardly time: it decides between deals that are equally fast. That is how
126 layers come to lie on 16 stages as 7, 8, ..., 8, 7.

With virtual stages there are `pp x virtual_stages` stages in model order, as in
`torch.distributed.pipelining`, and a pipeline rank runs several::

    interleaved (2 ranks, 2 each)      V-shape (zbv, dualpipev)
    stage  0  1  2  3                  stage  0  1  2  3
    rank   0  1  0  1                  rank   0  1  1  0
"""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate, pairwise
from math import inf

from parctl.recipes.parameters import count_parameters
from parctl.recipes.spec import ModelSpec, Schedule

V_SHAPED = ("zbv", "dualpipev")


def split_layers(model: ModelSpec, num_stages: int) -> tuple[tuple[int, ...], ...]:
    """Deal the decoder layers out to `num_stages` stages, in order."""
    count = count_parameters(model)
    mean = sum(layer.active for layer in count.layers) / len(count.layers)
    head = model.vocab_size * model.dim if model.vision is None else count.head
    sizes = balance(
        tuple(layer.active / mean for layer in count.layers),
        num_stages,
        first=(count.embedding + count.positions) / mean,
        last=head / mean,
    )
    starts = [sum(sizes[:index]) for index in range(num_stages)]
    return tuple(
        tuple(range(start, start + size)) for start, size in zip(starts, sizes, strict=True)
    )


@cache
def balance(
    costs: tuple[float, ...], num_stages: int, *, first: float = 0.0, last: float = 0.0
) -> list[int]:
    """How many of the items, in order, each stage takes for the heaviest to be as light as can be.

    `last` is an extra cost of the last stage. `first` is a burden of the first one that takes no
    time: it only decides between deals that are equally good. Every stage takes at least one item.

    >>> balance((1.0,) * 126, 16, first=0.7, last=0.7)
    [7, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 7]
    """
    count = len(costs)
    assert 1 <= num_stages <= count, "a stage without a layer"
    sums = [0.0, *accumulate(costs)]
    # no best deal has a heavier stage: filling stages up to the mean passes it by less than an item
    bound = (sums[-1] + last) / num_stages + max(costs) + last
    heaviest, _ = _deal(sums, num_stages, last, bound, max)
    # among the deals that are as fast, the most even one: least sum of squares, the burden counted
    _, sizes = _deal(
        sums,
        num_stages,
        last,
        heaviest + 1e-9,
        lambda total, cost: total + cost * cost,
        first,
    )
    return sizes


def _deal(
    sums: Sequence[float],
    num_stages: int,
    last: float,
    limit: float,
    add: Callable[[float, float], float],
    first: float = 0.0,
) -> tuple[float, list[int]]:
    """The deal with least `add(add(0, stage 0), stage 1) ...` and no stage heavier than `limit`.

    By dynamic programming over (stages so far, items so far). Returns that total, and the sizes.
    """
    count = len(sums) - 1
    best = [0.0] + [inf] * count  # by items so far
    choices: list[list[int]] = []
    for stage in range(num_stages):
        extra = last if stage == num_stages - 1 else 0.0
        burden = first if stage == 0 else 0.0
        following, choice = [inf] * (count + 1), [0] * (count + 1)
        for end in range(stage + 1, count - num_stages + stage + 2):
            for start in range(end - 1, stage - 1, -1):
                cost = sums[end] - sums[start] + extra
                if cost > limit:
                    break
                total = add(best[start], cost + burden)
                if total < following[end] - 1e-9:
                    following[end], choice[end] = total, start
        best = following
        choices.append(choice)
    ends = [count]
    for choice in reversed(choices):
        ends.append(choice[ends[-1]])
    ends.reverse()
    return best[count], [end - start for start, end in pairwise(ends)]


def pipeline_rank(stage: int, pp: int, schedule: Schedule) -> int:
    """The pipeline rank that runs a (virtual) stage.

    >>> [pipeline_rank(stage, 2, "interleaved-1f1b") for stage in range(4)]
    [0, 1, 0, 1]
    >>> [pipeline_rank(stage, 2, "zbv") for stage in range(4)]
    [0, 1, 1, 0]
    """
    turn, position = divmod(stage, pp)
    return pp - 1 - position if schedule in V_SHAPED and turn % 2 else position
