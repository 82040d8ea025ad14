"""Pipeline schedules as tables: what every pipeline rank computes, in which order.

A table has one row of actions per pipeline rank. It is made by arithmetic alone, so that a plan can
be checked, drawn and timed where there is no torch; the runtime executes the same table. Actions
are F (forward), B (whole backward), or B split in two: I (gradient of the input, which the stage
before waits for) and W (gradient of the weights, which nobody waits for).

    schedule          rows                                            idle share with F = I = W
    layer             F B F B ..., one micro-batch in the pipeline    (p - 1) / p
    gpipe             all F, all B (1811.06965)                       (p - 1) / (m + p - 1)
    1f1b              F and B in turn (2104.04473)                    (p - 1) / (m + p - 1)
    interleaved-1f1b  the same over v stages per rank (2104.04473)    (p - 1) / (v m + p - 1)
    zero-bubble       F and I in that order, W in the gaps            (p - 1) / (3 v m + p - 1)
                      (ZB-H1 of 2401.10241)
    zbv               V-shaped, W in the gaps (2405.15362)            (p - 1) / (6 m + p - 1)
    dualpipev         V-shaped, F of one half beside B of the other   (p - 1) / (6 m + p - 1)
                      (DualPipe, 2412.19437, cut in half)

with p pipeline ranks, m micro-batches (2 p or more), v stages per rank. DualPipe runs the pipeline
from both ends at once and therefore holds every parameter twice; folded into a V, each rank holds
two halves that are different stages, and nothing is doubled.
"""

import re
from collections.abc import Callable
from itertools import chain
from typing import Literal, NamedTuple, cast

from parctl.planner.stages import pipeline_rank
from parctl.recipes.spec import ParallelismSpec, Schedule

Kind = Literal["F", "B", "I", "W"]
ACTION = re.compile(r"(\d+)([FBIW])(\d+)")


class Action(NamedTuple):
    """What a rank computes for one micro-batch in one stage."""

    stage: int
    kind: Kind
    micro_batch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.kind}{self.micro_batch}"


Row = tuple[Action, ...]
Table = tuple[Row, ...]


def stage_ranks(spec: ParallelismSpec, pp: int) -> tuple[int, ...]:
    """Return the pipeline rank of every stage, in model order.

    >>> stage_ranks(zero_bubble_v, 2)
    (0, 1, 1, 0)
    """
    if spec.schedule_table is not None and pp > 1:
        table = read_table(spec.schedule_table)
        ranks = {action.stage: rank for rank, row in enumerate(table) for action in row}
        return tuple(ranks[stage] for stage in range(len(ranks)))
    return tuple(
        pipeline_rank(stage, pp, spec.schedule) for stage in range(pp * spec.virtual_stages)
    )


def read_table(rows: tuple[tuple[str, ...], ...]) -> Table:
    """Read the rows of a schedule of the user's own, which the recipe's checks have let pass."""
    return tuple(tuple(read_action(text) for text in row) for row in rows)


def read_action(text: str) -> Action:
    """Read an action as it is printed.

    >>> read_action("3F12")
    Action(stage=3, kind='F', micro_batch=12)
    """
    match = ACTION.fullmatch(text)
    assert match, text
    return Action(int(match[1]), cast(Kind, match[2]), int(match[3]))


def action_table(spec: ParallelismSpec, pp: int, num_micro_batches: int) -> Table:
    """Return the rows of every pipeline rank, by the schedule that `spec` names.

    >>> [" ".join(map(str, row)) for row in action_table(one_f_one_b, 2, 3)]
    ['0F0 0F1 0B0 0F2 0B1 0B2', '1F0 1B0 1F1 1B1 1F2 1B2']
    """
    if spec.schedule_table is not None:
        return read_table(spec.schedule_table)
    name = "layer" if spec.layer else spec.schedule
    return named_table(name, pp, spec.virtual_stages, num_micro_batches)


def named_table(name: Schedule | Literal["layer"], pp: int, virtual_stages: int, m: int) -> Table:
    """Return the rows of a schedule by its name, for `m` micro-batches."""
    v = virtual_stages
    match name:
        case "layer":
            return tuple(_in_turn(rank, m, warm_up=0) for rank in range(pp))
        case "gpipe":
            return tuple(_in_turn(rank, m, warm_up=m) for rank in range(pp))
        case "1f1b":
            return tuple(_in_turn(rank, m, warm_up=pp - 1 - rank) for rank in range(pp))
        case "interleaved-1f1b":
            return tuple(_interleaved(rank, pp, v, m, pace=2) for rank in range(pp))
        case "zero-bubble":
            order = tuple(_interleaved(rank, pp, v, m, pace=1) for rank in range(pp))
            return _weights_in_gaps(order, pp)
        case "zbv":
            return _v_shaped(pp, m)
        case "dualpipev":
            return tuple(_dual_pipe_v(rank, pp, m) for rank in range(pp))


def forward_table(spec: ParallelismSpec, pp: int, num_micro_batches: int) -> Table:
    """Return the rows of an evaluation: forward passes only, a micro-batch as soon as it arrives.

    Deeper stages go first, so a rank holds as little as possible.
    """
    ranks = stage_ranks(spec, pp)
    stages = [[s for s, owner in enumerate(ranks) if owner == rank] for rank in range(pp)]

    def choose(rank: int, state: "_State") -> Action | None:
        for stage in reversed(stages[rank]):
            action = Action(stage, "F", state.count(stage, "F"))
            if action.micro_batch < num_micro_batches and state.ready(action):
                return action
        return None

    return _greedy(pp, len(ranks), choose)


def _in_turn(stage: int, m: int, *, warm_up: int) -> Row:
    """`warm_up` forwards, then forward and backward in turn, then the backwards that are left."""
    warm_up = min(m, warm_up)
    row = [Action(stage, "F", index) for index in range(warm_up)]
    for index in range(m):
        if warm_up + index < m:
            row.append(Action(stage, "F", warm_up + index))
        row.append(Action(stage, "B", index))
    return tuple(row)


def _interleaved(rank: int, pp: int, v: int, m: int, *, pace: int) -> Row:
    """One forward, one backward over the rank's v stages.

    Micro-batches go in groups of pp through one stage of the rank after the other, so that the
    first of a group is back from the last rank when the rank has finished with the group. `pace`
    is how many forwards take the time of a backward that the rank before waits for.
    """
    forwards, backwards = [], []
    for first in range(0, m, pp):
        group = range(first, min(first + pp, m))
        forwards += [Action(c * pp + rank, "F", index) for c in range(v) for index in group]
        backwards += [
            Action(c * pp + rank, "B", index) for c in reversed(range(v)) for index in group
        ]
    warm_up = min(len(forwards), pace * (pp - 1 - rank) + (v - 1) * pp)
    steady = chain.from_iterable(zip(forwards[warm_up:], backwards, strict=False))
    return (*forwards[:warm_up], *steady, *backwards[len(forwards) - warm_up :])


def _weights_in_gaps(order: Table, pp: int) -> Table:
    """Split every B: I keeps its place in the order, W goes where the rank would wait.

    No rank holds more than the first one does without the split.
    """
    limit = most_held(order[0])
    places = [0] * pp

    def choose(rank: int, state: "_State") -> Action | None:
        if places[rank] < len(order[rank]):
            action = order[rank][places[rank]]
            if action.kind == "B":
                action = action._replace(kind="I")
            full = action.kind == "F" and state.held[rank] >= limit
            if state.ready(action) and not full:
                places[rank] += 1
                return action
        return state.oldest_weight(rank)

    return _greedy(pp, 1 + max(action.stage for row in order for action in row), choose)


def _v_shaped(pp: int, m: int) -> Table:
    """ZBV: rank r runs stages r and 2 pp - 1 - r, and holds at most 2 pp forwards.

    I comes first, since other ranks wait for it; then F, of the deeper stage where there is one,
    since it is nearer to its backward; W when there is nothing else.
    """

    def choose(rank: int, state: "_State") -> Action | None:
        outward, homeward = rank, 2 * pp - 1 - rank
        for stage in (outward, homeward):
            action = Action(stage, "I", state.count(stage, "I"))
            if action.micro_batch < m and state.ready(action):
                return action
        for stage in (homeward, outward):
            action = Action(stage, "F", state.count(stage, "F"))
            if action.micro_batch < m and state.ready(action) and state.held[rank] < 2 * pp:
                return action
        return state.oldest_weight(rank)

    return _greedy(pp, 2 * pp, choose)


def _dual_pipe_v(rank: int, pp: int, m: int) -> Row:
    """The eight phases of DualPipe (2412.19437) on one half of its ranks; needs m >= 2 pp.

    In the steady state (phase 4) the forward of one of the rank's stages stands beside the
    backward of the other, so that one computes while the other communicates.
    """
    stages = (rank, 2 * pp - 1 - rank)
    row: list[Action] = []
    weights: list[Action] = []
    forwards, backwards = [0, 0], [0, 0]

    def forward(half: int) -> None:
        row.append(Action(stages[half], "F", forwards[half]))
        forwards[half] += 1

    def backward(half: int, *, split: bool = False) -> None:
        row.append(Action(stages[half], "I" if split else "B", backwards[half]))
        if split:
            weights.append(row[-1]._replace(kind="W"))
        backwards[half] += 1

    def weight() -> None:
        row.append(weights.pop(0))

    ahead = pp - 1 - rank
    for _ in range(2 * ahead):
        forward(0)
    for _ in range(rank + 1):
        forward(0)
        forward(1)
    for _ in range(ahead):
        backward(1, split=True)
        weight()
        forward(1)
    for _ in range(m - 2 * pp + rank + 1):
        forward(0)
        backward(1)
        forward(1)
        backward(0)
    for _ in range(ahead):
        backward(1)
        forward(1)
        backward(0)
    half = (rank + 1) // 2
    for step in range(rank + 1):  # weights wait from the middle on, so that phase 7 has work
        backward(1, split=step > half or (step == half and rank % 2 == 1))
        backward(0, split=step >= half)
    for _ in range(ahead):
        if weights:
            weight()
        backward(0, split=True)
    while weights:
        weight()
    return tuple(row)


def needs(action: Action, num_stages: int) -> tuple[Action, ...]:
    """Return what must be finished before an action. A finished B counts as I and W."""
    stage, kind, index = action
    match kind:
        case "F":
            return (Action(stage - 1, "F", index),) if stage > 0 else ()
        case "W":
            return (Action(stage, "I", index),)
    forward = Action(stage, "F", index)
    if stage + 1 == num_stages:
        return (forward,)
    return forward, Action(stage + 1, "I", index)


def results(action: Action) -> tuple[Action, ...]:
    """Return what others may need of a finished action, in the terms of `needs`."""
    if action.kind == "B":
        return action._replace(kind="I"), action._replace(kind="W")
    return (action,)


def most_held(row: Row) -> int:
    """How many forwards of a rank are in memory at once: those whose B, or W, is not done."""
    held = most = 0
    for action in row:
        held += {"F": 1, "B": -1, "I": 0, "W": -1}[action.kind]
        most = max(most, held)
    return most


class _State:
    """What has been computed up to a moment of unit-time list scheduling."""

    def __init__(self, pp: int, num_stages: int) -> None:
        self.num_stages = num_stages
        self.finished: set[Action] = set()
        self.held = [0] * pp  # forwards of the rank whose W is not done
        self.weights: list[list[Action]] = [[] for _ in range(pp)]  # that may be computed
        self.counts: dict[tuple[int, Kind], int] = {}

    def count(self, stage: int, kind: Kind) -> int:
        return self.counts.get((stage, kind), 0)

    def ready(self, action: Action) -> bool:
        return all(need in self.finished for need in needs(action, self.num_stages))

    def oldest_weight(self, rank: int) -> Action | None:
        return self.weights[rank][0] if self.weights[rank] else None

    def take(self, rank: int, action: Action) -> None:
        self.counts[action.stage, action.kind] = self.count(action.stage, action.kind) + 1
        match action.kind:
            case "F":
                self.held[rank] += 1
            case "I":
                self.weights[rank].append(action._replace(kind="W"))
            case "W":
                self.weights[rank].remove(action)
                self.held[rank] -= 1


def _greedy(pp: int, num_stages: int, choose: Callable[[int, _State], Action | None]) -> Table:
    """Let every rank choose once per unit of time, until nobody finds anything to do."""
    state = _State(pp, num_stages)
    rows: list[list[Action]] = [[] for _ in range(pp)]
    while True:
        chosen = [choose(rank, state) for rank in range(pp)]
        if not any(chosen):
            return tuple(tuple(row) for row in rows)
        for rank, action in enumerate(chosen):
            if action is not None:
                rows[rank].append(action)
                state.take(rank, action)
        state.finished.update(action for action in chosen if action)
