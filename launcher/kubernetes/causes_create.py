"""What keeps the cluster from making the pods of a run at all."""

import re
from collections.abc import Sequence

from parctl.launcher.kubernetes.causes import Cause, event_line, events_of
from parctl.launcher.kubernetes.facts import Facts
from parctl.launcher.kubernetes.leader_worker_set import LEADER_WORKER_SET
from parctl.launcher.kubernetes.names import NUM_PODS
from parctl.launcher.kubernetes.objects import annotation_of, created_unix, phase_of
from parctl.launcher.kubernetes.state import is_suspended

QUIET_S = 20.0  # a controller that has done nothing for so long is not running

REASONS = (
    *("FailedCreate", "JobCreationFailed", "Forbidden"),
    *("FailedToCreateHeadPod", "FailedToCreateWorkerPod", "FailedToCreateRayCluster"),
)
REFUSALS: Sequence[tuple[str, str, str]] = (
    (
        r"exceeded quota: (\S+), requested: (.+?), used: (.+?), limited: (.+)",
        "quota {0} of the namespace is used up: a pod asks for {1}, used are {2} of {3}",
        "wait until other runs have ended, ask for less, or have the quota raised",
    ),
    (
        r"failed quota: (\S+): must specify (.+?) for",
        "quota {0} wants every pod to say how much it needs of {1}",
        "set `launch.kubernetes.memory` and `launch.kubernetes.cpu`, or a limit through `patch`",
    ),
    (
        r'serviceaccount "([^"]+)" not found',
        "there is no service account {0} in the namespace",
        "create it, or correct `launch.kubernetes.service_account`",
    ),
    (
        r"no PriorityClass with name (\S+) was found",
        "there is no PriorityClass {0}",
        "create it, or correct `launch.kubernetes.priority_class`",
    ),
    (
        r'violates PodSecurity "([^"]+)": (.+)',
        "the namespace enforces the pod security standard {0}, and the pods do not keep it: {1}",
        "use a namespace that permits it, or leave out host network, host paths and RDMA",
    ),
    (
        r'admission webhook "([^"]+)" denied the request: (.+)',
        "the admission webhook {0} refuses the pods: {1}",
        "ask whoever runs that webhook, or change what it complains of",
    ),
    (
        r"ValidatingAdmissionPolicy '([^']+)' with binding '[^']+' denied request: (.+)",
        "the admission policy {0} refuses the pods: {1}",
        "ask whoever made that policy, or change what it complains of",
    ),
    (
        r'failed calling webhook "([^"]+)": (.+)',
        "the admission webhook {0} does not answer, so no pod can be made: {1}",
        "ask whoever runs that webhook to bring it back",
    ),
    (
        r"must be less than or equal to (cpu|memory) limit of (\S+)",
        "a LimitRange of the namespace limits {0} to {1}, less than the pods ask for",
        "stay within it: `launch.kubernetes.cpu`, `launch.kubernetes.memory`",
    ),
    (
        r"(maximum|minimum) (cpu|memory) usage per (\w+) is (\S+?),",
        "a LimitRange of the namespace sets the {0} of {1} per {2} to {3}",
        "stay within it: `launch.kubernetes.cpu`, `launch.kubernetes.memory`",
    ),
)


def creation_causes(facts: Facts) -> Sequence[Cause]:
    """Refusals of pods, and controllers that do nothing."""
    causes = []
    wanted = {facts.run.workload["metadata"]["uid"], *(j["metadata"]["uid"] for j in facts.jobs)}
    for event in events_of(facts, *REASONS):
        if event["involvedObject"].get("uid") in wanted and not _has_pods(facts):
            causes.append(_refusal(str(event["message"]), event_line(event)))
            break
    return causes or _silence(facts)


def _refusal(message: str, line: str) -> Cause:
    for pattern, sentence, fix in REFUSALS:
        match = re.search(pattern, message, re.DOTALL)
        if match:
            words = [re.sub(r"\s+", " ", group).strip() for group in match.groups()]
            return Cause(sentence=sentence.format(*words), fix=fix, evidence=(line,))
    return Cause(
        sentence=f"the cluster refuses to make the pods: {message}", fix=None, evidence=(line,)
    )


def _has_pods(facts: Facts) -> bool:
    """Whether all of the wanted pods are there, so that the refusal is a thing of the past."""
    living = [pod for pod in facts.run.rank_pods if phase_of(pod) not in ("Failed", "Succeeded")]
    wanted = facts.run.workload["spec"].get("parallelism")
    if facts.run.workload["kind"] == LEADER_WORKER_SET:
        wanted = int(annotation_of(facts.run.workload, NUM_PODS) or 1)
    return bool(living) and (wanted is None or len(living) >= wanted)


def _silence(facts: Facts) -> Sequence[Cause]:
    workload = facts.run.workload
    age = facts.now_unix - created_unix(workload)
    if facts.run.rank_pods or is_suspended(workload) or age < QUIET_S:
        return []
    status = workload.get("status") or {}
    if status or any(job for job in facts.jobs if job.get("status")):
        return []
    kind = workload["kind"]
    controller = "kube-controller-manager" if kind == "Job" else f"{kind} controller"
    return [
        Cause(
            sentence=f"nothing has looked at {kind} {facts.run_id} for {age:.0f} s: the "
            f"{controller} is not running",
            fix="have it started again; the run goes on by itself then",
        )
    ]
