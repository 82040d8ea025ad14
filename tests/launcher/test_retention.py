"""Which runs go: by number, by age, never one that has not ended."""

import pytest

from parctl.launcher.backend import RunStatus, State
from parctl.launcher.contexts import Retention
from parctl.launcher.retention import expired

DAY = 86400.0
NOW = 100 * DAY


def ended(run_id: str, days_ago: float, state: State = State.SUCCEEDED) -> RunStatus:
    return RunStatus(
        run_id=run_id,
        name=run_id,
        backend="local",
        state=state,
        plan_hash="sha256:0",
        created_unix=0.0,
        ended_unix=NOW - days_ago * DAY if state.ended else None,
        restarts=0,
        step=None,
        steps=None,
        verdict=None,
        ranks=(),
        where="",
    )


RUNS = [
    ended("old", 40),
    ended("failed", 10, State.FAILED),
    ended("new", 1, State.CANCELLED),
    ended("running", 0, State.RUNNING),
    ended("restarting", 0, State.RESTARTING),
]


@pytest.mark.parametrize(
    ("runs", "days", "gone"),
    [
        (None, 30, ["old"]),
        (None, 5, ["old", "failed"]),
        (2, None, ["old"]),
        (0, None, ["old", "failed", "new"]),
        (1, 30, ["old", "failed"]),
        (None, 0, ["old", "failed", "new"]),
        (99, 99, []),
    ],
)
def test_the_oldest_ended_runs_go(runs: int | None, days: float | None, gone: list[str]) -> None:
    assert expired(RUNS, Retention(runs=runs, days=days), now=NOW) == gone
