"""Pipeline stages: which layers each one holds, and on which pipeline rank it runs.

The slowest stage sets the pace of a pipeline, so layers are dealt out such that the heaviest stage
is as light as it can be. The embedding and the head count too, each as the share of one layer that
it holds in parameters: that is how 126 layers come to lie on 16 stages as 7, 8, ..., 8, 7. Among
equally good deals the most even one is taken, and what cannot be even is lighter at the ends.

With virtual stages there are `pp x virtual_stages` stages in model order, as in
`torch.distributed.pipelining`, and a pipeline rank runs several::

    interleaved (2 ranks, 2 each)      V-shape (zbv, dualpipev)
    stage  0  1  2  3                  stage  0  1  2  3
    rank   0  1  0  1                  rank   0  1  1  0
"""

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

    `first` and `last` are extra costs of the end stages. Every stage takes at least one item.

    >>> balance((1.0,) * 126, 16, first=0.7, last=0.7)
    [7, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 7]
    """
    count = len(costs)
    assert 1 <= num_stages <= count, "a stage without a layer"
    sums = [0.0, *accumulate(costs)]
    # no best deal has a heavier stage: filling stages up to the mean passes it by less than one
    # item
    heaviest = (sums[-1] + first + last) / num_stages + max(costs) + max(first, last)
    # best[end]: the heaviest stage, and the sum of squares, of the stages so far when they hold
    # items[:end]. The squares break ties in favour of the most even deal; rounding makes equal sums
    # of fractions equal.
    nowhere = (inf, inf)
    best = [(0.0, 0.0)] + [nowhere] * count
    choices: list[list[int]] = []
    for stage in range(num_stages):
        extra = (first if stage == 0 else 0.0) + (last if stage == num_stages - 1 else 0.0)
        following, choice = [nowhere] * (count + 1), [0] * (count + 1)
        for end in range(stage + 1, count - num_stages + stage + 2):
            for start in range(end - 1, stage - 1, -1):
                cost = sums[end] - sums[start] + extra
                if cost > heaviest:
                    break
                before = best[start]
                here = (round(max(before[0], cost), 9), round(before[1] + cost * cost, 9))
                if here < following[end]:
                    following[end], choice[end] = here, start
        best = following
        choices.append(choice)
    ends = [count]
    for choice in reversed(choices):
        ends.append(choice[ends[-1]])
    ends.reverse()
    return [end - start for start, end in pairwise(ends)]


def pipeline_rank(stage: int, pp: int, schedule: Schedule) -> int:
    """The pipeline rank that runs a (virtual) stage.

    >>> [pipeline_rank(stage, 2, "interleaved-1f1b") for stage in range(4)]
    [0, 1, 0, 1]
    >>> [pipeline_rank(stage, 2, "zbv") for stage in range(4)]
    [0, 1, 1, 0]
    """
    turn, position = divmod(stage, pp)
    return pp - 1 - position if schedule in V_SHAPED and turn % 2 else position
