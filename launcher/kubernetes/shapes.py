"""The workload of a run: a pod template as Indexed Job or JobSet.

Who restarts what, by `launch.kubernetes.recovery`::

    native       any rank's failure ends every pod of the attempt, with the same exit code.
                 Job: `backoffLimitPerIndex` counts them, once per index. JobSet: `maxRestarts`.
    coordinator  pods stay, the coordinator starts the ranks again in them, and counts.
                 A pod that was lost is replaced, as often as it takes.

Pods that leave with 143 have saved, and pods that a drain, an eviction or a pre-emption took are no
failures: both are replaced and not counted. A RayJob has a driver of its own that does all this
(`parctl.launcher.kubernetes.rayjob`), and a LeaderWorkerSet starts again for ever
(`parctl.launcher.kubernetes.leader_worker_set`).
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from parctl.launcher.kubernetes.names import (
    CONTAINER,
    FAILED,
    REPLICATED_JOB,
    SAVED,
    Object,
)
from parctl.recipes.kubernetes_spec import KubernetesSpec, Recovery

if TYPE_CHECKING:
    from parctl.planner.plan import Plan

Shape = Literal["job", "jobset", "rayjob", "leaderworkerset"]
JOBSET_API = "jobset.x-k8s.io/v1alpha2"
# the field of a pod that counts the attempts before it
ATTEMPT_FIELDS = {
    "job": "metadata.annotations['batch.kubernetes.io/job-index-failure-count']",
    "jobset": "metadata.labels['jobset.sigs.k8s.io/restart-attempt']",
}


def leader_host(shape: Shape, run_id: str) -> str:
    """The host name of the first pod, as the run's headless Service publishes it."""
    if shape == "jobset":
        return f"{run_id}-{REPLICATED_JOB}-0-0.{run_id}"
    return f"{run_id}-0.{run_id}"


def workload(
    shape: Shape, plan: "Plan", run_id: str, recovery: Recovery, template: Object
) -> Object:
    """The object that owns the pods, without its metadata. `template` has `metadata`, `spec`."""
    retries, timeout_s = plan.recipe.launch.retries, plan.recipe.launch.timeout_s
    spec: Object = {
        "completionMode": "Indexed",
        "completions": plan.layout.num_nodes,
        "parallelism": plan.layout.num_nodes,
        "podReplacementPolicy": "Failed",  # the only one that goes with a podFailurePolicy
        "podFailurePolicy": {"rules": _failure_rules(recovery)},
        "template": template,
    }
    least = (plan.recipe.launch.kubernetes or KubernetesSpec()).min_nodes
    if least is not None:
        # pods leave with 0 only when the run has succeeded; those that never came are not needed
        spec["successPolicy"] = {"rules": [{"succeededCount": least}]}
    if shape == "jobset":
        spec["backoffLimit"] = 0
        failure_policy = {"maxRestarts": retries if recovery == "native" else 0}
        jobs = [{"name": REPLICATED_JOB, "replicas": 1, "template": {"spec": spec}}]
        network = {
            "enableDNSHostnames": True,
            "publishNotReadyAddresses": True,
            "subdomain": run_id,
        }
        if timeout_s is not None:
            spec["activeDeadlineSeconds"] = int(timeout_s)
        return {
            "apiVersion": JOBSET_API,
            "kind": "JobSet",
            "spec": {"failurePolicy": failure_policy, "network": network, "replicatedJobs": jobs},
        }
    template["spec"]["subdomain"] = run_id
    if recovery == "native":
        spec |= {"backoffLimitPerIndex": retries, "maxFailedIndexes": 0}
    else:
        spec["backoffLimit"] = 0
    if timeout_s is not None:
        spec["activeDeadlineSeconds"] = int(timeout_s)
    return {"apiVersion": "batch/v1", "kind": "Job", "spec": spec}


def _failure_rules(recovery: Recovery) -> list[Object]:
    rules: list[Object] = [
        {
            "action": "Ignore",
            "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
        }
    ]
    if recovery == "native":
        return [*rules, _on_exit("Ignore", "In", SAVED)]
    # the agent leaves with it only when the coordinator has given the run up
    return [*rules, _on_exit("FailJob", "In", FAILED), _on_exit("Ignore", "NotIn", FAILED)]


def _on_exit(action: str, operator: str, code: int) -> Object:
    requirement = {"containerName": CONTAINER, "operator": operator, "values": [code]}
    return {"action": action, "onExitCodes": requirement}


def template_of(workload: Mapping[str, Any]) -> Any:
    """The template of the pods of any kind of workload; of a RayJob that of its head.

    Raises KeyError, IndexError or TypeError where there is none.
    """
    spec = workload["spec"]
    if "rayClusterSpec" in spec:
        return spec["rayClusterSpec"]["headGroupSpec"]["template"]
    if "leaderWorkerTemplate" in spec:
        return spec["leaderWorkerTemplate"]["workerTemplate"]
    if "replicatedJobs" in spec:
        spec = spec["replicatedJobs"][0]["template"]["spec"]
    return spec["template"]
