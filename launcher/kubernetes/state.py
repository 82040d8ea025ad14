"""What the objects of a run, and its leader's last report, mean for its state.

Kubernetes decides whether a run has ended; the leader knows which rank did what. Where they differ
the objects are right: a report may come from a pod that has long been replaced.
"""

import time
from dataclasses import replace

from parctl.launcher.backend import RunStatus, State, Verdict
from parctl.launcher.kubernetes import names
from parctl.launcher.kubernetes.leader_worker_set import LEADER_WORKER_SET
from parctl.launcher.kubernetes.names import Object
from parctl.launcher.kubernetes.objects import (
    RunObjects,
    annotation_of,
    condition,
    container_restarts,
    created_unix,
    phase_of,
    terminated,
    unix,
)
from parctl.launcher.kubernetes.rayjob_state import (
    end_of_rayjob,
    progress_of_rayjob,
    verdict_of_rayjob,
)
from parctl.launcher.kubernetes.report import Report, read_report, read_words
from parctl.launcher.verdict import plain_verdict


def status_of(run: RunObjects, report: Report | None, *, server: str) -> RunStatus:
    """`report`: from the log of the leader's pod; None: there is none to be read."""
    report = newest_report(run, report)
    status = workload_status(run.workload, report, server=server)
    state = status.state
    pods = [pod for pod in run.rank_pods if phase_of(pod) not in ("Succeeded", "Failed")]
    if cancelled_unix(run.workload) is not None and pods and state is State.CANCELLED:
        state = State.RUNNING  # its pods are still saving
    elif not state.ended:
        state = _state_of_pods(run, report, state)
    verdict = status.verdict
    if state is State.FAILED and verdict is None:
        verdict = _verdict_of_objects(run)
    if run.workload["kind"] == LEADER_WORKER_SET:
        counts = [status.restarts, *map(container_restarts, run.rank_pods)]
        status = replace(status, restarts=max(counts))
    return _with(status, state=state, verdict=verdict)


def workload_status(workload: Object, report: Report | None, *, server: str) -> RunStatus:
    """What the workload alone says: one request for all runs gives no more."""
    report = report or read_report(annotation_of(workload, names.STATE) or "")
    ended = end_of(workload)
    cancelled = cancelled_unix(workload)
    state = ended[0] if ended else State.PENDING
    if cancelled is not None and state is not State.SUCCEEDED:
        state = State.CANCELLED
    elif ended is None and not is_suspended(workload):
        state = report.state if report and not report.state.ended else _counted_state(workload)
    verdict = report.verdict if report and state is State.FAILED else None
    steps = annotation_of(workload, names.STEPS)
    return RunStatus(
        run_id=workload["metadata"]["name"],
        name=annotation_of(workload, names.RECIPE) or "",
        backend="kubernetes",
        state=state,
        plan_hash=annotation_of(workload, names.PLAN_HASH) or "",
        created_unix=created_unix(workload),
        ended_unix=cancelled if state is State.CANCELLED else (ended[1] if ended else None),
        restarts=max(report.restarts if report else 0, restarts_of(workload)),
        step=report.step if report else None,
        steps=int(steps) if steps else None,
        verdict=verdict,
        ranks=report.ranks if report else (),
        where=f"{server} namespace {workload['metadata']['namespace']} "
        f"{workload['kind'].lower()} {workload['metadata']['name']}",
    )


def end_of(workload: Object) -> tuple[State, float | None] | None:
    """How and when a workload ended; None: it has not."""
    if workload["kind"] == "RayJob":
        return end_of_rayjob(workload)
    for kind, state in (
        ("Complete", State.SUCCEEDED),
        ("Completed", State.SUCCEEDED),
        ("Failed", State.FAILED),
    ):
        found = condition(workload, kind)
        if found is not None:
            return state, unix(found.get("lastTransitionTime"))
    return None


def is_suspended(workload: Object) -> bool:
    return bool(workload["spec"].get("suspend"))


def cancelled_unix(workload: Object) -> float | None:
    value = annotation_of(workload, names.CANCELLED)
    return float(value) if value else None


def restarts_of(workload: Object) -> int:
    """As the cluster counts them. A Job counts failed pods: the indexes fail together."""
    status = workload.get("status") or {}
    if workload["kind"] == "JobSet":
        return int(status.get("restartsCountTowardsMax") or status.get("restarts") or 0)
    return 0


def _counted_state(workload: Object) -> State:
    """By the numbers of pods that the workload itself keeps."""
    if workload["kind"] == "RayJob":
        return progress_of_rayjob(workload)
    status = workload.get("status") or {}
    if workload["kind"] == LEADER_WORKER_SET:
        if status.get("readyReplicas"):
            return State.RUNNING
        return State.PLACING if status.get("replicas") else State.PENDING
    if workload["kind"] == "JobSet":
        jobs = status.get("replicatedJobsStatus") or ()
        active = sum(int(job.get("active") or 0) for job in jobs)
        ready = sum(int(job.get("ready") or 0) for job in jobs)
        wanted = active
    else:
        ready = int(status.get("ready") or 0)
        wanted = int(workload["spec"].get("parallelism") or 1)
        active = int(status.get("active") or 0)
    if not active:
        return State.PENDING
    return State.RUNNING if ready and ready >= wanted else State.PLACING


def _state_of_pods(run: RunObjects, report: Report | None, state: State) -> State:
    if is_suspended(run.workload):
        return State.PENDING
    pods = [pod for pod in run.rank_pods if phase_of(pod) not in ("Succeeded", "Failed")]
    running = [pod for pod in run.rank_pods if phase_of(pod) in ("Running", "Succeeded")]
    wanted = int(annotation_of(run.workload, names.NUM_PODS) or 1)
    failed = [pod for pod in run.rank_pods if phase_of(pod) == "Failed"]
    if len(running) < wanted:
        scheduled = [pod for pod in pods if pod["spec"].get("nodeName")]
        if failed or restarts_of(run.workload):
            return State.RESTARTING
        return State.PLACING if scheduled else State.PENDING
    if report is not None and report.state in (State.RUNNING, State.PLACING, State.RESTARTING):
        return report.state
    if run.workload["kind"] == "RayJob":  # its pods are up, and its job is not there yet
        return State.PLACING if state is State.PENDING else state
    return State.RUNNING if state is State.PENDING else state


def newest_report(run: RunObjects, report: Report | None) -> Report | None:
    """The latest of what the log, the annotation and the last words of the pods say."""
    said = [report, read_report(annotation_of(run.workload, names.STATE) or "")]
    for pod in run.rank_pods:
        end = terminated(pod, names.CONTAINER)
        said.append(read_words((end or {}).get("message")))
    reports = [each for each in said if each is not None]
    newest = max(reports, key=lambda each: each.updated_unix, default=None)
    if newest is None:
        return None
    # last words are cut: the ranks may be known from an earlier report of the same attempt
    fuller = [each for each in reports if each.attempt == newest.attempt and each.ranks]
    if not newest.ranks and fuller:
        ranks = max(fuller, key=lambda each: each.updated_unix).ranks
        return replace(newest, ranks=ranks)
    return newest


def _verdict_of_objects(run: RunObjects) -> Verdict | None:
    """Why the cluster says that the workload failed, when no leader could say more."""
    failed = condition(run.workload, "Failed")
    if run.workload["kind"] != "RayJob" and failed is None:
        return None
    for pod in sorted(run.rank_pods, key=created_unix, reverse=True):
        end = terminated(pod, names.CONTAINER)
        if end and end.get("reason") == "OOMKilled":
            node = pod["spec"].get("nodeName")
            return plain_verdict(
                f"the container of pod {pod['metadata']['name']} on node {node} used more than its "
                "memory limit and was killed",
                cause="OOMKilled",
                fix="raise `launch.kubernetes.memory`, lower `train.micro_batch`, or shard more",
            )
    if failed is None:
        return verdict_of_rayjob(run.workload)
    sentence = f"{failed.get('reason')}: {failed.get('message')}"
    return plain_verdict(sentence, cause=str(failed.get("reason")), fix=None)


def _with(status: RunStatus, *, state: State, verdict: Verdict | None) -> RunStatus:
    ended = status.ended_unix if state.ended else None
    if state.ended and ended is None:
        ended = time.time()
    return replace(status, state=state, verdict=verdict, ended_unix=ended)
