"""A run as a RayJob under KubeRay: a Ray cluster of its own, and the driver of Ray runs as its job.

::

    RayJob --KubeRay--> RayCluster --+-- head pod: the driver, which places, counts retries, judges
                                     +-- one worker pod per node of the plan: an agent, the ranks

A cluster that does not exist yet can be sent no package. So parctl comes with the image, and the
plan is mounted, as in every other pod of a run. Plans name nodes of Kubernetes; a Ray pod calls
itself by the node that it runs on. When the job has ended KubeRay removes the workers, and with
them what they held; the head stays until the run is deleted, since it has the log. Pure.
"""

import json
from collections.abc import Mapping
from copy import deepcopy

from parctl.launcher.kubernetes.coordinator_objects import AWAY_FROM_GPUS
from parctl.launcher.kubernetes.names import (
    COORDINATOR,
    DASHBOARD_PORT,
    RANKS,
    ROLE,
    RUN_MOUNT,
    Object,
)
from parctl.launcher.kubernetes.objects import RAY_API
from parctl.launcher.kubernetes.resources import MIB, mebibytes, num_bytes, ranks_per_pod
from parctl.planner.plan import Plan
from parctl.recipes.kubernetes_spec import KubernetesSpec

RUN_FILE = "run.json"  # what the driver is told beside the plan
WORK = f"{RUN_MOUNT}/work"
PROGRAM = "parctl.launcher.kubernetes.ray_pod"
# KubeRay decides by it which health checks and which sign-in there are; an image may have a newer
OLDEST_RAY = "2.53.0"
OBJECT_STORE_BYTES = 128 * MIB  # agents and driver exchange words; tensors never go there
RAY_BYTES = 1024 * MIB  # raylet, its agents and their workers, in every pod
HEAD_REQUESTS = {"cpu": "500m", "memory": "1Gi"}
HEAD_LIMITS = {"memory": "4Gi"}
UNUSED = ("PARCTL_LEADER", "PARCTL_CONTROL_PORT", "PARCTL_LAST_WORDS")  # of the agent in other pods
OVERWRITE = {"ray.io/overwrite-container-cmd": "true"}
OPERATOR = {"app.kubernetes.io/name": "kuberay-operator"}


def run_file(plan: Plan, spec: KubernetesSpec, run_id: str, *, has_work: bool) -> bytes:
    """What the driver reads beside the plan. `has_work`: `launch.workdir` is sent along."""
    from parctl.launcher.ray.manifest import run_settings

    script = plan.recipe.script
    workdir = (script.workdir if script else None) or (WORK if has_work else None)
    # where checkpoints go has been checked: `checks.check_plan`
    settings = run_settings(plan, run_id, storage=None, workdir=workdir) | {
        # the values are in the environment of the container already
        "secrets": {name: name for name in plan.recipe.launch.secrets},
        "wait_s": spec.gather_timeout_s,
        "preflight": spec.preflight,
        "min_nodes": spec.min_nodes,
        "rejoin_s": spec.rejoin_s,
    }
    return json.dumps(settings).encode()


def rayjob(plan: Plan, spec: KubernetesSpec, run_id: str, template: Object) -> Object:
    """The object that owns the pods, without its metadata. `template`: of a pod with ranks."""
    from parctl.launcher.ray.manifest import DRIVER_ENVIRONMENT, ENTRYPOINT, job_metadata

    workers = _worker(template, own_memory=spec.memory is not None)
    num_ranks, is_gpu = ranks_per_pod(plan), plan.topology.get("kind") == "gpu"
    num_nodes = plan.layout.num_nodes
    store = {"object-store-memory": str(OBJECT_STORE_BYTES)}
    resources = {"num-cpus": str(num_ranks), "num-gpus": str(num_ranks if is_gpu else 0)}
    keep_head = {"policy": "DeleteWorkers"}
    return {
        "apiVersion": RAY_API,
        "kind": "RayJob",
        "spec": {
            # KubeRay's own pod for submitting inherits no tolerations, and is one pod more
            "submissionMode": "HTTPMode",
            "jobId": run_id,
            "entrypoint": ENTRYPOINT,
            "metadata": job_metadata(plan),
            "runtimeEnvYAML": json.dumps({"env_vars": DRIVER_ENVIRONMENT}),  # JSON is YAML
            "backoffLimit": 0,  # retries are counted by the driver
            # may be suspended, as `parctl cancel` and Kueue do, only if it is shut down at its end;
            # of the two ways to say what that means, the newer one excludes this
            "shutdownAfterJobFinishes": True,
            "deletionStrategy": {"onSuccess": keep_head, "onFailure": keep_head},
            "rayClusterSpec": {
                "rayVersion": OLDEST_RAY,
                "authOptions": {"mode": "token"},  # who reaches the dashboard may run anything
                "headGroupSpec": {
                    "rayStartParams": {"num-cpus": "0", "num-gpus": "0", **store},
                    "template": _head(workers),
                },
                "workerGroupSpecs": [
                    {
                        "groupName": RANKS,
                        "replicas": num_nodes,
                        "minReplicas": num_nodes,
                        "maxReplicas": num_nodes,
                        "rayStartParams": {**resources, **store},
                        "template": workers,
                    }
                ],
            },
        },
    }


def operator_may_enter() -> Object:
    """Of a NetworkPolicy: KubeRay submits the job and asks how it is by the dashboard."""
    operator = {"namespaceSelector": {}, "podSelector": {"matchLabels": OPERATOR}}
    return {"from": [operator], "ports": [{"port": DASHBOARD_PORT, "protocol": "TCP"}]}


def _worker(template: Object, *, own_memory: bool) -> Object:
    result = deepcopy(template)
    (container,) = result["spec"]["containers"]
    container["command"] = ["python3", "-P", "-m", PROGRAM]
    kept = [each for each in container["env"] if each["name"] not in UNUSED]
    container["env"] = [*kept, {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"}]
    del container["terminationMessagePath"]
    # readiness is KubeRay's word here: it waits for all pods before it submits the job
    container.pop("readinessProbe", None)
    if not own_memory:
        for amounts in (container["resources"]["requests"], container["resources"]["limits"]):
            if "memory" in amounts:
                more = num_bytes(amounts["memory"]) + RAY_BYTES + OBJECT_STORE_BYTES
                amounts["memory"] = mebibytes(more)
    for volume in result["spec"]["volumes"]:
        if volume["name"] == "shared-memory":
            own = num_bytes(volume["emptyDir"]["sizeLimit"])
            volume["emptyDir"]["sizeLimit"] = mebibytes(own + OBJECT_STORE_BYTES)
    return result


def _head(worker: Object) -> Object:
    """The same pod without devices, rather on a node that has none."""
    result = deepcopy(worker)
    result["metadata"]["labels"] = {**result["metadata"]["labels"], ROLE: COORDINATOR}
    result["metadata"].pop("annotations", None)  # Kueue's topology request is one of the ranks
    spec = result["spec"]
    (container,) = spec["containers"]
    container |= {"name": COORDINATOR, "resources": _head_resources()}
    spec["affinity"] = deepcopy(AWAY_FROM_GPUS)
    spec.pop("nodeSelector", None)
    return result


def _head_resources() -> Mapping[str, Mapping[str, str]]:
    return {"requests": dict(HEAD_REQUESTS), "limits": dict(HEAD_LIMITS)}
