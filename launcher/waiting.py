"""Waiting for the end of a run, on any back end, and what its end means for the caller."""

import time

from parctl.errors import ParctlError, RunCancelledError, RunFailedError, RunTimeoutError
from parctl.launcher.backend import Backend, RunStatus, State
from parctl.launcher.verdict import verdict_text

FIRST_POLL_S = 0.05
LONGEST_POLL_S = 1.0


def wait_for(backend: Backend, run_id: str, *, timeout_s: float | None) -> RunStatus:
    """Return the status of a run once it has ended. RunTimeoutError: it has not by then."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    poll_s = FIRST_POLL_S
    while True:
        status = backend.status(run_id)
        if status.state.ended:
            return status
        left_s = LONGEST_POLL_S if deadline is None else deadline - time.monotonic()
        if left_s <= 0:
            raise RunTimeoutError(
                f"run `{run_id}` is {status.state} after {timeout_s:g} s",
                hint=f"it goes on; `parctl why {run_id}` says what it is doing",
            )
        time.sleep(min(poll_s, left_s))
        poll_s = min(poll_s * 1.5, LONGEST_POLL_S)


def outcome_error(status: RunStatus) -> ParctlError | None:
    """Return the error that an ended run stands for, with its exit code; None: it succeeded."""
    if status.state is State.SUCCEEDED:
        return None
    if status.state is State.CANCELLED:
        return RunCancelledError(f"run `{status.run_id}` was cancelled")
    verdict = status.verdict
    text = verdict_text(verdict) if verdict else "no verdict was recorded"
    return RunFailedError(
        f"run `{status.run_id}` failed: {text}", hint=verdict.fix if verdict else None
    )
