"""Which ended runs are old enough to go. Running ones are never touched."""

import time
from collections.abc import Sequence

from parctl.errors import UsageError
from parctl.launcher.backend import RunStatus
from parctl.launcher.contexts import Retention, load_settings
from parctl.launcher.places import config_file

DAY_S = 86400.0


def limits(*, runs: int | None, days: float | None) -> Retention:
    """Return what to keep: the flags, and for a flag that is not given the user's settings."""
    settings = load_settings().retention
    keep = Retention(
        runs=settings.runs if runs is None else runs,
        days=settings.days if days is None else days,
    )
    if keep.runs is None and keep.days is None:
        raise UsageError(
            "nothing says which runs to keep",
            hint=f"`parctl prune --runs 50 --days 30`, or `retention:` in `{config_file()}`",
        )
    return keep


def expired(runs: Sequence[RunStatus], keep: Retention, *, now: float | None = None) -> list[str]:
    """Return the ids of ended runs that `keep` does not cover, oldest first."""
    ended = sorted(
        (run for run in runs if run.state.ended and run.ended_unix is not None),
        key=lambda run: (run.ended_unix or 0.0, run.run_id),
        reverse=True,
    )
    horizon = (time.time() if now is None else now) - (keep.days or 0.0) * DAY_S
    gone = [
        run.run_id
        for position, run in enumerate(ended)
        if (keep.runs is not None and position >= keep.runs)
        or (keep.days is not None and (run.ended_unix or 0.0) < horizon)
    ]
    return gone[::-1]
