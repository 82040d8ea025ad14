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
from typing import Literal, cast

from parctl.planner.bubble import timeline
from parctl.planner.schedules import Action, named_table
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

    def of(self, action: Action) -> float:
        match action.kind:
            case "F":
                return self.forward
            case "B":
                return self.inputs + self.weights
            case "I":
                return self.inputs
            case "W":
                return self.weights


def schedule_of(job: Job) -> Schedule | Literal["layer"] | None:
    """The schedule whose table is known; None: it has none here (DualPipe from both ends)."""
    if job.virtual_stages > 1 and job.schedule == "1f1b":
        return "interleaved-1f1b"
    names = ("layer", "gpipe", "1f1b", "interleaved-1f1b", "zero-bubble", "zbv", "dualpipev")
    return cast(Schedule, job.schedule) if job.schedule in names else None


def rank_of(job: Job, stage: int) -> int:
    """The pipeline rank of a stage."""
    name = schedule_of(job)
    shaped = name if name in ("zbv", "dualpipev") else "1f1b"
    return pipeline_rank(stage, job.degrees.pp, shaped)


def rank_times(job: Job, stages: Sequence[StageTime]) -> list[float]:
    """Seconds that every pipeline rank computes for one micro-batch."""
    totals = [0.0] * job.degrees.pp
    for number, stage in enumerate(stages):
        totals[rank_of(job, number)] += stage.total
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
    table = named_table(name, pp, job.virtual_stages, done)
    duration = timeline(
        table, len(stages), lambda action: stages[action.stage].of(action), exchange=exchange
    ).duration
    waited = duration - done * max(rank_times(job, stages))
    return waited * m / done if name == "layer" else waited


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
