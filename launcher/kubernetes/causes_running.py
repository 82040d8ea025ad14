"""What is the matter with a run whose pods are up."""

from collections.abc import Sequence

from parctl.launcher.backend import State
from parctl.launcher.kubernetes import names
from parctl.launcher.kubernetes.causes import Cause, pod_name
from parctl.launcher.kubernetes.facts import Facts
from parctl.launcher.kubernetes.objects import annotation_of, created_unix, phase_of
from parctl.launcher.kubernetes.state import status_of

MEET_S = 30.0  # for the agents of new pods to find each other
SILENT_S = 600.0  # a training run that logs nothing for so long is worth a look


def running_causes(facts: Facts) -> Sequence[Cause]:
    """Waiting for each other, silent, or simply going on."""
    report = facts.report
    status = status_of(facts.run, report, server="")
    running = [pod for pod in facts.run.rank_pods if phase_of(pod) == "Running"]
    if not running:
        return []
    coordinator = _coordinator(facts)
    if coordinator:
        return coordinator
    wanted = int(annotation_of(facts.run.workload, names.NUM_PODS) or 1)
    newest_s = facts.now_unix - max(created_unix(pod) for pod in running)
    apart = report is not None and len(running) >= wanted and not report.ranks
    if report is not None and report.reason and apart and newest_s > MEET_S:
        return [
            Cause(
                sentence=f"all pods run, but do not find each other: {report.reason}",
                fix="a NetworkPolicy or the cluster's DNS keeps them apart: port "
                f"{names.CONTROL_PORT} and every other of the run's pods must be open to them",
            )
        ]
    if report is not None and report.reason:
        return [Cause(sentence=f"the run waits: {report.reason}", fix=None)]
    step = f", step {status.step} of {status.steps}" if status.step is not None else ""
    silent_s = facts.now_unix - report.updated_unix if report and report.step else 0.0
    if silent_s > SILENT_S:
        return [
            Cause(
                sentence=f"the run is alive but has logged no step for {silent_s:.0f} s{step}",
                fix=f"`kubectl exec {pod_name(running[0])} -- py-spy dump --pid PID` shows where a "
                "rank is",
            )
        ]
    if status.state is State.RUNNING:
        return [Cause(sentence=f"the run is going on{step}", fix=None)]
    if status.state is State.PLACING and report is None and facts.run.workload["kind"] == "RayJob":
        return [
            Cause(
                sentence="Ray is coming up in the pods; KubeRay submits the job once all are ready",
                fix=None,
            )
        ]
    if status.state is State.PLACING:
        return [
            Cause(sentence="its ranks are being started (importing torch takes seconds)", fix=None)
        ]
    return []


def _coordinator(facts: Facts) -> list[Cause]:
    """A run that waits for its coordinator."""
    if annotation_of(facts.run.workload, names.RECOVERY) != "coordinator":
        return []
    pods = facts.run.coordinator_pods
    if any(phase_of(pod) == "Running" for pod in pods):
        return []
    if not pods:
        return [
            Cause(
                sentence="the coordinator of the run has no pod: nothing is started or restarted",
                fix=f"`kubectl describe job {names.coordinator_name(facts.run_id)}` says why",
            )
        ]
    return [
        Cause(
            sentence=f"the coordinator of the run is {phase_of(pods[-1])}, so nothing is started "
            "or restarted",
            fix=f"`kubectl describe pod {pod_name(pods[-1])}` says why",
        )
    ]
