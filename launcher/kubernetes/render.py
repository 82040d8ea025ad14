"""A plan as Kubernetes objects. Pure: no cluster, no `kubernetes` package, the same bytes again.

::

    ConfigMap RUN-plan, RUN-plan-1 ...   the plan, the cluster it was made for, the work folder
    Service RUN                          headless: the pods' names
    NetworkPolicy RUN                    only the run's own pods reach its ranks
    RUN-coordinator                      recovery: coordinator - account, role, Service, Job
    Service RUN-endpoint                 task: serve, for clients
    Job, JobSet, RayJob, LeaderWorkerSet the pods; it is called RUN

The workload comes last, so that pods find what they mount.
"""

import json
from dataclasses import dataclass

from parctl.errors import UsageError
from parctl.launcher.backend import Manifests
from parctl.launcher.kubernetes import names
from parctl.launcher.kubernetes.checks import check_plan
from parctl.launcher.kubernetes.coordinator_objects import coordinator_objects
from parctl.launcher.kubernetes.endpoint import (
    clients_may_enter,
    endpoint_notes,
    endpoint_port,
    endpoint_service,
)
from parctl.launcher.kubernetes.leader_worker_set import (
    group_annotations,
    group_notes,
    leader_worker_set,
    may_be_group,
)
from parctl.launcher.kubernetes.names import Object
from parctl.launcher.kubernetes.patch import patched, patched_pod, unused
from parctl.launcher.kubernetes.payload import WORKDIR, pack
from parctl.launcher.kubernetes.placement import topology_request
from parctl.launcher.kubernetes.pod_template import pod_spec
from parctl.launcher.kubernetes.privileges import privileged_choices
from parctl.launcher.kubernetes.rayjob import (
    OVERWRITE,
    RUN_FILE,
    operator_may_enter,
    rayjob,
    run_file,
)
from parctl.launcher.kubernetes.shapes import ATTEMPT_FIELDS, Shape, leader_host, workload
from parctl.launcher.owner import label_value
from parctl.launcher.run_id import check_run_id
from parctl.planner.plan import Plan, canonical
from parctl.recipes.kubernetes_spec import KubernetesSpec
from parctl.topology.model import Topology

PLAN_FILE = "plan.json"
TOPOLOGY_FILE = "topology.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where the objects go, and what the launcher knows beside the plan."""

    namespace: str
    owner: str = ""  # who launches; "": not said
    queue: str | None = None  # when the recipe names none
    image: str | None = None  # when the recipe names none
    has_jobset: bool = True  # what `kind: auto` becomes
    has_lws: bool = True
    topology: Topology | None = None  # the cluster that the plan was made for
    workdir: bytes | None = None  # launch.workdir, as `payload.read_workdir` packs it


def render(plan: Plan, run_id: str, target: Target) -> Manifests:
    """Return every object of a run. UsageError, CannotPlaceError: it cannot run on Kubernetes."""
    run_id = check_run_id(run_id)
    spec = plan.recipe.launch.kubernetes or KubernetesSpec()
    shape = shape_of(plan, spec, target)
    queue = plan.recipe.launch.queue or target.queue
    # a LeaderWorkerSet keeps its pods together by itself
    check_plan(plan, spec, keeps_together=bool(queue) or shape == "leaderworkerset")
    maps = pack(_files(plan, spec, target, shape, run_id))
    payload = [f"{run_id}-plan" + (f"-{number}" if number else "") for number in range(len(maps))]
    objects: list[Object] = [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name, "labels": {names.ROLE: names.PLAN}},
            "immutable": True,
            "binaryData": data,
        }
        for name, data in zip(payload, maps, strict=True)
    ]
    if shape == "job":  # JobSets and LeaderWorkerSets bring their own, and a RayJob needs none
        objects.append(_service(run_id))
    if spec.network_policy and not spec.host_network:
        objects.append(_network_policy(plan, run_id, shape))
    port = endpoint_port(plan)
    has_endpoint = port is not None and shape != "rayjob"
    if port is not None and has_endpoint:
        objects.append(endpoint_service(run_id, port))
    leader = leader_host(shape, run_id)
    if spec.recovery == "coordinator":
        image = spec.agent_image or _image(plan, target)
        objects += coordinator_objects(spec, run_id, image=image, payload=payload)
        leader = names.coordinator_name(run_id)
    objects.append(_workload(plan, spec, shape, run_id, target, leader, payload, queue))
    return Manifests(
        run_id=run_id,
        backend="kubernetes",
        plan=plan,
        documents=tuple(_finished(each, plan, spec, run_id, target) for each in objects),
        notes=(
            *privileged_choices(spec),
            *unused(spec.patch, {each["kind"] for each in objects}),
            *(group_notes(plan) if shape == "leaderworkerset" else ()),
            *endpoint_notes(plan, run_id, target.namespace, has_service=has_endpoint),
        ),
    )


def shape_of(plan: Plan, spec: KubernetesSpec, target: Target) -> Shape:
    """What `kind` means on this cluster."""
    if spec.kind != "auto":
        return spec.kind
    if target.has_lws and may_be_group(plan, spec):
        return "leaderworkerset"
    return "jobset" if target.has_jobset else "job"


def _workload(
    plan: Plan,
    spec: KubernetesSpec,
    shape: Shape,
    run_id: str,
    target: Target,
    leader: str,
    payload: list[str],
    queue: str | None,
) -> Object:
    pod = pod_spec(
        plan,
        spec,
        run_id,
        image=_image(plan, target),
        leader=leader,
        topology=target.topology,
        attempt_field=ATTEMPT_FIELDS.get(shape) if spec.recovery == "native" else None,
        payload=payload,
    )
    labels = _labels(plan, run_id, target) | {names.ROLE: names.RANKS}
    template: Object = {"metadata": {"labels": labels}, "spec": pod}
    if queue:
        request = topology_request(plan, spec, target.topology)
        if request:
            template["metadata"]["annotations"] = request
    template = patched_pod(template, spec.patch)
    if shape == "rayjob":
        result = rayjob(plan, spec, run_id, template)
    elif shape == "leaderworkerset":
        result = leader_worker_set(plan, template)
    else:
        result = workload(shape, plan, run_id, spec.recovery, template)
    steps = plan.recipe.train.steps if plan.recipe.train else None
    result["metadata"] = {
        "name": run_id,
        "labels": {names.ROLE: names.WORKLOAD} | ({names.QUEUE: queue} if queue else {}),
        "annotations": {
            names.PLAN_HASH: plan.hash,
            names.RECIPE: plan.recipe.name,
            names.RECOVERY: spec.recovery,
            names.NUM_RANKS: str(plan.layout.world_size),
            names.NUM_PODS: str(plan.layout.num_nodes),
        }
        | ({} if steps is None else {names.STEPS: str(steps)})
        | (OVERWRITE if shape == "rayjob" else {})
        | (group_annotations(spec, queued=bool(queue)) if shape == "leaderworkerset" else {}),
    }
    return result


def _finished(
    each: Object, plan: Plan, spec: KubernetesSpec, run_id: str, target: Target
) -> Object:
    """Add what every object has, apply the recipe's patch, and put the keys in the usual order."""
    metadata = each.get("metadata", {})
    labels = _labels(plan, run_id, target) | metadata.get("labels", {})
    result: Object = {
        "apiVersion": each["apiVersion"],
        "kind": each["kind"],
        "metadata": {
            "name": metadata["name"],
            "namespace": target.namespace,
            "labels": labels,
            **({"annotations": metadata["annotations"]} if "annotations" in metadata else {}),
        },
    }
    result |= {key: value for key, value in each.items() if key not in result}
    return patched(result, spec.patch)


def _labels(plan: Plan, run_id: str, target: Target) -> dict[str, str]:
    labels = {
        "app.kubernetes.io/name": "parctl",
        "app.kubernetes.io/instance": run_id,
        "app.kubernetes.io/version": label_value(plan.parctl_version),
        "app.kubernetes.io/component": plan.recipe.task,
        "app.kubernetes.io/part-of": "parctl",
        "app.kubernetes.io/managed-by": names.MANAGER,
        names.RUN: run_id,
    }
    return labels | ({names.OWNER: label_value(target.owner)} if target.owner else {})


def _files(
    plan: Plan, spec: KubernetesSpec, target: Target, shape: Shape, run_id: str
) -> dict[str, bytes]:
    files = {PLAN_FILE: canonical(plan.to_json()).encode()}
    if target.topology is not None:
        from parctl.topology.store import topology_to_json

        files[TOPOLOGY_FILE] = json.dumps(topology_to_json(target.topology)).encode()
    if target.workdir is not None:
        files[WORKDIR] = target.workdir
    if shape == "rayjob":
        files[RUN_FILE] = run_file(plan, spec, run_id, has_work=target.workdir is not None)
    return files


def _image(plan: Plan, target: Target) -> str:
    image = plan.recipe.launch.image or target.image
    if image is None:
        raise UsageError(
            "no container image: pods need one with Python, torch and parctl",
            hint="set launch.image, or PARCTL_IMAGE for all recipes",
        )
    return image


def _service(run_id: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": run_id},
        "spec": {
            "clusterIP": "None",
            # ranks find each other before anybody is ready, and finish one by one
            "publishNotReadyAddresses": True,
            "selector": {names.RUN: run_id, names.ROLE: names.RANKS},
            "ports": [{"name": "control", "port": names.CONTROL_PORT}],
        },
    }


def _network_policy(plan: Plan, run_id: str, shape: Shape) -> Object:
    own = {"podSelector": {"matchLabels": {names.RUN: run_id}}}
    ingress: list[Object] = [{"from": [own]}]
    if shape == "rayjob":
        ingress.append(operator_may_enter())
    port = endpoint_port(plan)
    if port is not None:
        ingress.append(clients_may_enter(port))
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": run_id},
        "spec": {**own, "policyTypes": ["Ingress"], "ingress": ingress},
    }
