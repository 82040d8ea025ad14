"""How a run ended, and what took pods from it on the way."""

from collections.abc import Mapping, Sequence
from typing import Any

from parctl.launcher.backend import State
from parctl.launcher.kubernetes import names
from parctl.launcher.kubernetes.causes import Cause, event_line, events_of, pod_name
from parctl.launcher.kubernetes.facts import Facts
from parctl.launcher.kubernetes.names import Object
from parctl.launcher.kubernetes.objects import condition, containers, created_unix, phase_of
from parctl.launcher.kubernetes.state import status_of

DISRUPTIONS = {
    "PreemptionByScheduler": (
        "was pre-empted by a pod of higher priority",
        "set `launch.kubernetes.priority_class`, or wait: it is resumed when there is room",
    ),
    "DeletionByTaintManager": (
        "was taken off its node, which did not answer or was tainted",
        "look at the node: `kubectl describe node NAME`",
    ),
    "EvictionByEvictionAPI": (
        "was evicted, as a drain of its node does",
        "nothing: it is resumed on another node",
    ),
    "TerminationByKubelet": (
        "was ended by its node",
        "look at the node: it ran out of something, or was shut down",
    ),
    "DeletionByPodGC": ("was deleted with its node", "nothing: it is resumed on another node"),
}


def end_causes(facts: Facts) -> Sequence[Cause]:
    """What ended the run; empty while it goes on."""
    status = status_of(facts.run, facts.report, server="")
    if status.state is State.SUCCEEDED or status.state is State.CANCELLED:
        return [Cause(sentence=f"the run is {status.state}", fix=None, final=True)]
    if status.state is not State.FAILED:
        return []
    failed = condition(facts.run.workload, "Failed") or {}
    seen = (f"{failed.get('reason')}: {failed.get('message')}",) if failed else ()
    if failed.get("reason") == "DeadlineExceeded" or _child_reason(facts) == "DeadlineExceeded":
        return [
            Cause(
                sentence="the run took longer than launch.timeout_s allows",
                fix="raise `launch.timeout_s`",
                evidence=seen,
                final=True,
            )
        ]
    lost = [*_killed_for_memory(facts.run.rank_pods), *loss_causes(facts), *_broken(facts)]
    if lost and (status.verdict is None or status.verdict.rank is None):
        first = lost[0]
        return [Cause(sentence=first.sentence, fix=first.fix, evidence=seen, final=True)]
    refused = events_of(facts, "FailedScheduling")
    if status.verdict is not None and status.verdict.rank is None and refused and not status.ranks:
        said = str(refused[0]["message"])
        return [
            Cause(
                sentence=f"{status.verdict.sentence}; the scheduler said last: {said}",
                fix="free what is lacking there, or wait longer: "
                "`launch.kubernetes.gather_timeout_s`",
                evidence=(event_line(refused[0]), *seen),
                final=True,
            )
        ]
    if status.verdict is not None:
        return [
            Cause(
                sentence=status.verdict.sentence,
                fix=status.verdict.fix,
                evidence=(*status.verdict.last_lines, *seen),
                final=True,
            )
        ]
    return [Cause(sentence="the run has failed", fix=None, evidence=seen, final=True)]


def loss_causes(facts: Facts) -> Sequence[Cause]:
    """Pods that the cluster took away, newest first."""
    causes = []
    for pod in sorted(facts.run.rank_pods, key=created_unix, reverse=True):
        status = pod.get("status") or {}
        node = pod["spec"].get("nodeName")
        if status.get("reason") == "Evicted":
            said = str(status.get("message") or "").rstrip(". ")
            causes.append(
                Cause(
                    sentence=f"node {node} evicted pod {pod_name(pod)}: {said}",
                    fix="free that resource on the node, or ask for it: "
                    "`launch.kubernetes.memory`; files belong on a volume",
                )
            )
            continue
        found = condition(pod, "DisruptionTarget")
        if found is not None:
            words, fix = DISRUPTIONS.get(str(found.get("reason")), ("was disrupted", None))
            causes.append(Cause(sentence=f"pod {pod_name(pod)} on node {node} {words}", fix=fix))
    return [*_killed_for_memory(facts.run.rank_pods), *causes]


def _killed_for_memory(pods: Sequence[Object]) -> list[Cause]:
    causes = []
    for pod in sorted(pods, key=created_unix, reverse=True):
        for container in containers(pod):
            if _last_end(container).get("reason") != "OOMKilled":
                continue
            limit = _memory_limit(pod, container["name"])
            causes.append(
                Cause(
                    sentence=f"pod {pod_name(pod)} on node {pod['spec'].get('nodeName')} was "
                    f"killed for using more memory than its limit{limit}",
                    fix="raise `launch.kubernetes.memory`, lower `train.micro_batch`, or shard "
                    "over more ranks",
                )
            )
    return causes


def _last_end(container: Mapping[str, Any]) -> Mapping[str, Any]:
    """How a container ended that does not run now; one that waits is to be started again."""
    now = container.get("state") or {}
    before = (container.get("lastState") or {}) if "waiting" in now else {}
    return now.get("terminated") or before.get("terminated") or {}


def _memory_limit(pod: Object, name: str) -> str:
    for container in pod["spec"]["containers"]:
        if container["name"] == name:
            limit = (container.get("resources", {}).get("limits") or {}).get("memory")
            return f", {limit}" if limit else ""
    return ""


def _broken(facts: Facts) -> Sequence[Cause]:
    """Containers that ended before an agent could say anything."""
    from parctl.launcher.kubernetes.causes_container import ended_cause

    for pod in sorted(facts.run.rank_pods, key=created_unix, reverse=True):
        if phase_of(pod) != "Failed":
            continue
        for container in containers(pod):
            state = (container.get("state") or {}).get("terminated") or {}
            message = str(state.get("message") or "")
            told = message.startswith("{") or message.startswith("the pod ")
            if state and state.get("exitCode") not in (0, names.SAVED) and not told:
                return [ended_cause(pod, container["name"], state)]
    return []


def _child_reason(facts: Facts) -> str | None:
    for job in facts.jobs:
        failed = condition(job, "Failed")
        if failed is not None:
            return str(failed.get("reason"))
    return None
