"""How long pipeline ranks wait for each other: the schedule, worked through action by action.

`waiting` times the schedule's own table (`parctl.planner.schedules`) with the seconds of every
stage, so that uneven stages, the head of the last one and the way between ranks count. A long step
is the same round over and over: so many micro-batches are worked through as reach the steady
state, and the rest only lengthen it by what the slowest rank computes for them.

`even_waiting` is the closed form for stages of equal length, which a fit can afford and which the
former equals exactly where stages are equal and the way between ranks costs nothing:

    the other ranks' time for one micro-batch x share

    share    gpipe, 1f1b 1      interleaved 1/v      zero-bubble 1/(3 v)      zbv, dualpipev 1/6
    layer    one rank works at a time: as much for every micro-batch
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, cast

from parctl.planner.schedules import Action, named_table, needs, results
from parctl.planner.stages import pipeline_rank
from parctl.planner.time.job import Job
from parctl.recipes.spec import Schedule

STEADY = 4  # micro-batches per pipeline rank that are worked through


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTime:
    """Seconds of one micro-batch in one (virtual) stage, exchanges included."""

    forward: float
    inputs: float  # backward for the input, and what backward does again
    weights: float

    @property
    def total(self) -> float:
        return self.forward + self.inputs + self.weights

    def times(self, number: int) -> "StageTime":
        return StageTime(
            forward=self.forward * number,
            inputs=self.inputs * number,
            weights=self.weights * number,
        )

    def __add__(self, other: "StageTime") -> "StageTime":
        return StageTime(
            forward=self.forward + other.forward,
            inputs=self.inputs + other.inputs,
            weights=self.weights + other.weights,
        )


def schedule_of(job: Job) -> Schedule | Literal["layer"] | None:
    """The schedule whose table is known; None: it has none here (DualPipe from both ends)."""
    if job.virtual_stages > 1 and job.schedule == "1f1b":
        return "interleaved-1f1b"
    names = ("layer", "gpipe", "1f1b", "interleaved-1f1b", "zero-bubble", "zbv", "dualpipev")
    return cast(Schedule, job.schedule) if job.schedule in names else None


def ranks_of(job: Job) -> list[int]:
    """The pipeline rank of every stage."""
    name, pp = schedule_of(job), job.degrees.pp
    shaped = name if name in ("zbv", "dualpipev") else "1f1b"
    return [pipeline_rank(stage, pp, shaped) for stage in range(len(job.stages))]


def rank_times(job: Job, stages: Sequence[StageTime]) -> list[float]:
    """Seconds that every pipeline rank computes for one micro-batch."""
    totals = [0.0] * job.degrees.pp
    for rank, stage in zip(ranks_of(job), stages, strict=True):
        totals[rank] += stage.total
    return totals


def waiting(job: Job, stages: Sequence[StageTime], exchange: float) -> float:
    """Seconds of a step beyond what the slowest rank computes; `exchange`: from rank to rank."""
    pp, m = job.degrees.pp, job.num_micro_batches
    if pp == 1:
        return 0.0
    name = schedule_of(job)
    done = min(m, STEADY * pp)
    # interleaving deals micro-batches out in rounds of pp
    if name is None or (name == "interleaved-1f1b" and done % pp):
        return even_waiting(job, stages, exchange)
    duration = _duration(name, pp, job.virtual_stages, done, tuple(stages), exchange)
    waited = duration - done * max(rank_times(job, stages))
    return waited * m / done if name == "layer" else waited


@lru_cache(maxsize=256)
def _duration(
    name: Schedule | Literal["layer"],
    pp: int,
    virtual_stages: int,
    m: int,
    stages: tuple[StageTime, ...],
    exchange: float,
) -> float:
    costs = [(stage.forward, stage.inputs, stage.weights) for stage in stages]
    ends: list[float] = []
    free = [0.0] * pp
    for rank, stage, kind, wanted, travel in _program(name, pp, virtual_stages, m):
        start = free[rank]
        for need, travels in zip(wanted, travel, strict=True):
            arrival = ends[need] + exchange if travels else ends[need]
            if arrival > start:
                start = arrival
        forward, inputs, weights = costs[stage]
        if kind == "F":
            end = start + forward
        elif kind == "I":
            end = start + inputs
        elif kind == "W":
            end = start + weights
        else:
            end = start + inputs + weights
        free[rank] = end
        ends.append(end)
    return max(free)


_Step = tuple[int, int, str, tuple[int, ...], tuple[bool, ...]]


@lru_cache(maxsize=128)
def _program(
    name: Schedule | Literal["layer"], pp: int, virtual_stages: int, m: int
) -> tuple[_Step, ...]:
    """A schedule's actions in an order in which they can be timed one by one.

    Of each: its rank, stage and kind, and the places of those it needs, with whether what they make
    has to travel.
    """
    table = named_table(name, pp, virtual_stages, m)
    num_stages = pp * virtual_stages
    rank_of = {action.stage: rank for rank, row in enumerate(table) for action in row}
    places: dict[Action, int] = {}
    program: list[_Step] = []
    next_of = [0] * pp
    moved = True
    while moved:
        moved = False
        for rank, row in enumerate(table):
            while next_of[rank] < len(row):
                action = row[next_of[rank]]
                wanted = needs(action, num_stages)
                if any(need not in places for need in wanted):
                    break
                program.append(
                    (
                        rank,
                        action.stage,
                        action.kind,
                        tuple(places[need] for need in wanted),
                        tuple(rank_of[need.stage] != rank for need in wanted),
                    )
                )
                places.update(dict.fromkeys(results(action), len(program) - 1))
                next_of[rank] += 1
                moved = True
    assert len(program) == sum(map(len, table)), "a named schedule can be worked through"
    return tuple(program)


def least_waiting(job: Job, stages: Sequence[StageTime], exchange: float) -> float:
    """No more than `waiting`, and equal to it for most schedules of even stages; much cheaper."""
    name, pp, m = schedule_of(job), job.degrees.pp, job.num_micro_batches
    if pp == 1:
        return 0.0
    if name is None or name == "layer":
        return even_waiting(job, stages, exchange)
    totals = rank_times(job, stages)
    return least_duration(name, m, totals, stages, exchange) - m * max(totals)


def least_duration(
    name: Schedule, m: int, totals: Sequence[float], stages: Sequence[StageTime], exchange: float
) -> float:
    """Seconds that `m` micro-batches take at least. `totals`: what each rank computes for one.

    A rank cannot begin before the first micro-batch has come down to it, and when it has made the
    last one's gradient, that has to go all the way back. Weights may be left for then, where a
    schedule splits backward passes.
    """
    whole = name in ("gpipe", "1f1b", "interleaved-1f1b")
    longest, down, back, path = 0.0, 0.0, 0.0, 0.0
    # in every schedule the first stages lie on the ranks in their order
    for total, stage in zip(totals, stages, strict=False):
        own = stage.forward + stage.inputs
        if whole:
            longest = max(longest, down + m * total + back)
        else:
            longest = max(longest, down + m * total, down + m * own + back)
        down += stage.forward + exchange
        back += stage.inputs + exchange + (stage.weights if whole else 0.0)
    for stage in stages:
        path += stage.total if whole else stage.forward + stage.inputs
    return max(longest, path)


def even_waiting(job: Job, stages: Sequence[StageTime], exchange: float) -> float:
    """The closed form of `waiting`."""
    pp, m, v = job.degrees.pp, job.num_micro_batches, job.virtual_stages
    if pp == 1:
        return 0.0
    totals = rank_times(job, stages)
    others = sum(totals) - max(totals)
    match schedule_of(job):
        case "layer":
            return m * (others + 2 * (pp - 1) * exchange)
        case "zbv" | "dualpipev":
            share = 1 / 6
        case "zero-bubble" | None:
            share = 1 / (3 * v)
        case _:
            share = 1 / v
    return others * share + 2 * (pp - 1) * exchange
