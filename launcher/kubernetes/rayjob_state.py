"""What the status of a RayJob says of the run, in KubeRay's words."""

from collections.abc import Mapping
from typing import Any

from parctl.launcher.backend import State, Verdict
from parctl.launcher.kubernetes.names import Object
from parctl.launcher.kubernetes.objects import unix
from parctl.launcher.verdict import plain_verdict

REFUSED = "ValidationFailed"
ENDS = {"Complete": State.SUCCEEDED, "Failed": State.FAILED, REFUSED: State.FAILED}


def end_of_rayjob(workload: Object) -> tuple[State, float | None] | None:
    """How and when it ended; None: it has not. One that Ray calls stopped was cancelled there."""
    status: Mapping[str, Any] = workload.get("status") or {}
    state = ENDS.get(str(status.get("jobDeploymentStatus")))
    if state is None:
        return None
    if status.get("jobStatus") == "STOPPED":
        state = State.CANCELLED
    return state, unix(status.get("endTime"))


def progress_of_rayjob(workload: Object) -> State:
    """Where it is while it goes on, by what KubeRay alone knows."""
    status: Mapping[str, Any] = workload.get("status") or {}
    word = status.get("jobDeploymentStatus")
    if word == "Running":
        return State.RUNNING if status.get("jobStatus") == "RUNNING" else State.PLACING
    return State.PENDING


def verdict_of_rayjob(workload: Object) -> Verdict:
    """Why KubeRay says that it failed, where the driver said nothing."""
    status: Mapping[str, Any] = workload.get("status") or {}
    said = " ".join(str(status.get("message") or "it does not say why").split())
    if status.get("jobDeploymentStatus") == REFUSED:
        return plain_verdict(
            f"KubeRay does not accept the RayJob: {said}",
            cause=REFUSED,
            fix="KubeRay 1.6 or newer knows all that parctl asks of it; check `patch` too",
        )
    reason = str(status.get("reason") or "Failed")
    return plain_verdict(f"{reason}: {said[:500]}", cause=reason, fix=None)
