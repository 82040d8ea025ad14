"""Waiting in pipelines: closed forms where stages are even, the schedule's own table elsewhere."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from tests.planner.time.jobs import job

from parctl.planner.degrees import Degrees
from parctl.planner.time.job import Job
from parctl.planner.time.pipeline import (
    StageTime,
    even_waiting,
    least_waiting,
    rank_times,
    waiting,
)

EVEN = StageTime(forward=1.0, inputs=1.0, weights=1.0)
# schedule, stages per rank, bubble in passes of one stage (2104.04473, 2401.10241, 2405.15362)
CLOSED: list[tuple[str, int, Callable[[int], float]]] = [
    ("gpipe", 1, lambda p: 3 * (p - 1)),
    ("1f1b", 1, lambda p: 3 * (p - 1)),
    ("interleaved-1f1b", 2, lambda p: 3 * (p - 1)),
    ("interleaved-1f1b", 4, lambda p: 3 * (p - 1)),
    ("zero-bubble", 1, lambda p: p - 1),
    ("zero-bubble", 2, lambda p: p - 1),
    ("zbv", 2, lambda p: p - 1),
    ("dualpipev", 2, lambda p: p - 1),
]


def pipeline(schedule: str, pp: int, virtual: int, micro_batches: int) -> Job:
    stages = tuple((index,) for index in range(pp * virtual))
    return job(
        degrees=Degrees(pp=pp),
        schedule=schedule,
        virtual_stages=virtual,
        stages=stages,
        num_micro_batches=micro_batches,
    )


@pytest.mark.parametrize(("schedule", "virtual", "bubble"), CLOSED)
@pytest.mark.parametrize("pp", [2, 4, 8])
def test_even_stages_wait_exactly_as_long_as_the_papers_say(
    schedule: str, virtual: int, bubble: Callable[[int], float], pp: int
) -> None:
    for micro_batches in (2 * pp, 4 * pp, 64 * pp):
        even = pipeline(schedule, pp, virtual, micro_batches)
        stages = [EVEN] * (pp * virtual)
        assert waiting(even, stages, 0.0) == pytest.approx(bubble(pp), abs=1e-9)
        assert even_waiting(even, stages, 0.0) == pytest.approx(bubble(pp), abs=1e-9)


@pytest.mark.parametrize(("schedule", "virtual", "bubble"), CLOSED)
def test_the_least_wait_is_reached_by_even_stages_and_never_exceeded(
    schedule: str, virtual: int, bubble: Callable[[int], float]
) -> None:
    for micro_batches in (8, 16, 64):
        even = pipeline(schedule, 4, virtual, micro_batches)
        assert least_waiting(even, [EVEN] * (4 * virtual), 0.0) == pytest.approx(bubble(4))
        for slow in range(4 * virtual):
            stages = [
                StageTime(forward=1.0 + (stage == slow), inputs=1.3, weights=0.6)
                for stage in range(4 * virtual)
            ]
            least = least_waiting(even, stages, 0.2)
            assert 0 <= least <= waiting(even, stages, 0.2) + 1e-9


def test_ranks_of_the_naive_schedule_work_one_at_a_time() -> None:
    naive = pipeline("layer", 4, 1, 8)
    assert waiting(naive, [EVEN] * 4, 0.0) == pytest.approx(8 * 3 * 3)
    assert even_waiting(naive, [EVEN] * 4, 0.0) == pytest.approx(8 * 3 * 3)


def test_waiting_does_not_grow_with_the_micro_batches_of_a_long_step() -> None:
    uneven = [EVEN, StageTime(forward=2.0, inputs=2.0, weights=2.0), EVEN, EVEN]
    short = waiting(pipeline("1f1b", 4, 1, 16), uneven, 0.5)
    assert waiting(pipeline("1f1b", 4, 1, 512), uneven, 0.5) == pytest.approx(short)


def test_a_slow_last_stage_makes_the_first_micro_batch_wait_for_the_others_only() -> None:
    """The last of two ranks is busy from the first forward pass of the other one to its own end."""
    slow = StageTime(forward=2.0, inputs=2.0, weights=2.0)
    two = pipeline("1f1b", 2, 1, 8)
    assert rank_times(two, [EVEN, slow]) == [3.0, 6.0]
    # 1 before its first forward pass, and 2 in which rank 0 goes back through the last micro-batch
    assert waiting(two, [EVEN, slow], 0.0) == pytest.approx(3.0)


def test_the_way_between_ranks_is_waited_for() -> None:
    two = pipeline("1f1b", 2, 1, 1)
    assert waiting(two, [EVEN, EVEN], 0.25) == pytest.approx(3.0 + 2 * 0.25)


def test_without_a_pipeline_nobody_waits() -> None:
    assert waiting(job(), [EVEN], 1.0) == 0.0
    assert even_waiting(job(), [EVEN], 1.0) == 0.0


def test_a_schedule_without_a_table_has_its_closed_form() -> None:
    """DualPipe from both ends: a third of 1F1B's waiting."""
    both = replace(pipeline("1f1b", 4, 1, 16), schedule="dualpipe")
    assert waiting(both, [EVEN] * 4, 0.0) == pytest.approx(3.0)
