"""A run that serves as a LeaderWorkerSet: a group of pods that is meant to be there for ever.

::

    LeaderWorkerSet RUN --+-- pod RUN-0                      index 0, where the leader of the run is
                          +-- StatefulSet RUN-0 --+-- pod RUN-0-1
                                                  +-- pod RUN-0-2 ...

One group holds all ranks of the plan; replicas of the model are an axis of the plan (`dp`), behind
one endpoint. When a rank dies every agent leaves with the same code, as in a Job, and the kubelets
start the containers again, after pauses that grow to five minutes. The set's own way, to delete the
whole group when one container has ended, knows no pauses, and takes with the pods what they said
of the cause; so its `restartPolicy` is None. A pod that is lost is made again by its StatefulSet,
and the others wait for it. Nobody counts: an endpoint has no end but being cancelled. Pure.
"""

from typing import TYPE_CHECKING

from parctl.errors import UsageError
from parctl.launcher.kubernetes.names import Object
from parctl.recipes.kubernetes_spec import KubernetesSpec

if TYPE_CHECKING:
    from parctl.planner.plan import Plan

LWS_API = "leaderworkerset.x-k8s.io/v1"
LEADER_WORKER_SET = "LeaderWorkerSet"
INDEX_LABEL = "leaderworkerset.sigs.k8s.io/worker-index"
INDEX_VARIABLE = "LWS_WORKER_INDEX"  # put into every container by the set's webhook
NAME_LABEL = "leaderworkerset.sigs.k8s.io/name"
EXCLUSIVE_TOPOLOGY = "leaderworkerset.sigs.k8s.io/exclusive-topology"


def may_be_group(plan: "Plan", spec: KubernetesSpec) -> bool:
    """Whether `kind: auto` may become a LeaderWorkerSet."""
    return (
        plan.recipe.task == "serve"
        and spec.recovery == "native"
        and plan.recipe.launch.timeout_s is None
    )


def check_group(plan: "Plan", spec: KubernetesSpec) -> None:
    """Raise UsageError for what a LeaderWorkerSet cannot give."""
    task = plan.recipe.task
    if task != "serve":
        raise UsageError(
            f"kind = leaderworkerset starts again whatever ends, and a run of task {task} ends",
            hint="leave `launch.kubernetes.kind` out, or use `kind: jobset` or `kind: job`",
        )
    if spec.recovery == "coordinator":
        raise UsageError(
            "recovery = coordinator, and the pods of a LeaderWorkerSet start again by themselves",
            hint="leave `recovery` out, or use `kind: jobset` or `kind: job`",
        )
    if plan.recipe.launch.timeout_s is not None:
        raise UsageError(
            f"launch.timeout_s = {plan.recipe.launch.timeout_s:g}, and a LeaderWorkerSet has no "
            "such limit",
            hint="leave `timeout_s` out, or use `kind: jobset` or `kind: job`",
        )


def leader_worker_set(plan: "Plan", template: Object) -> Object:
    """The object that owns the pods, without its metadata. `template` has `metadata`, `spec`."""
    template["spec"]["restartPolicy"] = "Always"  # of a StatefulSet no other is allowed
    return {
        "apiVersion": LWS_API,
        "kind": LEADER_WORKER_SET,
        "spec": {
            "replicas": 1,
            "startupPolicy": "LeaderCreated",
            "leaderWorkerTemplate": {
                "size": plan.layout.num_nodes,
                "restartPolicy": "None",
                "workerTemplate": template,
            },
        },
    }


def group_annotations(spec: KubernetesSpec, *, queued: bool) -> dict[str, str]:
    """Without a queue the set itself keeps its pods in one domain, and other sets out of it."""
    if spec.topology is None or queued:
        return {}
    return {EXCLUSIVE_TOPOLOGY: spec.topology}


def group_notes(plan: "Plan") -> tuple[str, ...]:
    retries = plan.recipe.launch.retries
    if not retries:
        return ()
    return (
        f"launch.retries = {retries} is not counted: the pods of a LeaderWorkerSet start again as "
        "often as they end",
    )
