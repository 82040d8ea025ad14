"""The pod that runs on every node of a plan: one container, whose agent starts the ranks.

It passes the `restricted` pod security standard as long as the recipe asks for nothing that this
standard forbids: the node's network, folders of the node, RDMA (which pins memory).
"""

from collections.abc import Mapping, Sequence

from parctl.errors import UsageError
from parctl.launcher.kubernetes.endpoint import endpoint_port, readiness
from parctl.launcher.kubernetes.names import (
    AGENT_MOUNT,
    CONTAINER,
    PLAN_MOUNT,
    RUN_MOUNT,
    TERMINATION_LOG,
    Object,
    control_port,
)
from parctl.launcher.kubernetes.placement import affinity, tolerations
from parctl.launcher.kubernetes.resources import pod_resources
from parctl.launcher.nodes.environment import given_variables, refuse_reserved
from parctl.planner.plan import Plan
from parctl.recipes.kubernetes_spec import KubernetesSpec, VolumeSpec
from parctl.recipes.spec import SecretSpec
from parctl.topology.model import Topology

USER = 1000
AGENT = "parctl.launcher.kubernetes.pod"
LEAVE_S = 15  # for the agent, after the ranks have had their `stop_grace_s`
RANKS_MAY_SET = ("HOME", "USER", "PYTHONPATH")
# put into containers by the cluster's own controllers
INJECTED = ("JOB_COMPLETION_INDEX", "LWS_LEADER_ADDRESS", "LWS_GROUP_SIZE", "LWS_WORKER_INDEX")
# the name of a variable -> the field of the pod that it shows
FIELDS = {
    "PARCTL_NODE": "spec.nodeName",
    "PARCTL_POD": "metadata.name",
    "PARCTL_POD_UID": "metadata.uid",
    "PARCTL_POD_IP": "status.podIP",
    "PARCTL_NAMESPACE": "metadata.namespace",
}


def pod_spec(
    plan: Plan,
    spec: KubernetesSpec,
    run_id: str,
    *,
    image: str,
    leader: str,
    topology: Topology | None,
    attempt_field: str | None,  # of the pod, that counts earlier attempts
    payload: Sequence[str],  # names of ConfigMaps
) -> Object:
    """The spec of the pods. `leader` is the host name where their agents meet.

    UsageError: the recipe sets a variable that is ours, or has a secret that is not in the cluster.
    """
    resources = pod_resources(plan, spec)
    fields = FIELDS | ({"PARCTL_FAILURES": attempt_field} if attempt_field else {})
    environment: list[Object] = [
        {"name": "PARCTL_RUN_ID", "value": run_id},
        {"name": "PARCTL_LEADER", "value": leader},
        {
            "name": "PARCTL_CONTROL_PORT",
            "value": str(control_port(run_id, host_network=spec.host_network)),
        },
        {"name": "PARCTL_PLAN_FOLDER", "value": PLAN_MOUNT},
        {"name": "PARCTL_RUN_FOLDER", "value": RUN_MOUNT},
        {"name": "PARCTL_LAST_WORDS", "value": TERMINATION_LOG},
        # a numeric user has no entry in /etc/passwd, and libraries ask for both
        {"name": "HOME", "value": "/tmp"},
        {"name": "USER", "value": "parctl"},
        *(
            {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
            for name, path in fields.items()
        ),
    ]
    if spec.agent_image:
        environment.append({"name": "PYTHONPATH", "value": AGENT_MOUNT})
    own = [*(each["name"] for each in environment), *INJECTED]
    secrets = plan.recipe.launch.secrets
    # what a recipe sets goes to the ranks, where `HOME` is anybody's; secrets to the container
    refuse_reserved(
        given_variables(plan.recipe), also=[name for name in own if name not in RANKS_MAY_SET]
    )
    refuse_reserved(secrets, also=own)
    environment += _secrets(secrets)
    volumes, mounts = _volumes(spec, resources.shared_memory, payload)
    container = {
        "name": CONTAINER,
        "image": image,
        "command": ["python3", "-P", "-m", AGENT],
        "env": environment,
        "resources": {"requests": resources.requests, "limits": resources.limits},
        "securityContext": _container_security(spec),
        "terminationMessagePath": TERMINATION_LOG,
        "volumeMounts": mounts,
    }
    port = endpoint_port(plan)
    if port is not None:
        container["readinessProbe"] = readiness(port)
    placed = affinity(plan, spec, run_id, topology)
    pod: Object = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": int(plan.recipe.launch.stop_grace_s) + LEAVE_S,
        "securityContext": pod_security(),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "tolerations": tolerations(plan, spec),
        "containers": [container],
        "volumes": volumes,
    }
    optional = {
        "affinity": placed,
        "nodeSelector": dict(spec.node_selector),
        "serviceAccountName": spec.service_account,
        "priorityClassName": spec.priority_class,
        "imagePullSecrets": [{"name": name} for name in spec.pull_secrets],
        "initContainers": _init_containers(spec),
    }
    pod |= {name: value for name, value in optional.items() if value}
    if spec.host_network:
        pod |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    return pod


def pod_security() -> Object:
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _container_security(spec: KubernetesSpec) -> Object:
    capabilities: Object = {"drop": ["ALL"]}
    if spec.rdma:
        capabilities["add"] = ["IPC_LOCK"]
    return {"allowPrivilegeEscalation": False, "capabilities": capabilities}


def _secrets(secrets: Mapping[str, SecretSpec]) -> list[Object]:
    """Only by reference: a value would be there for everybody to read who may read pods."""
    entries = []
    for name, secret in secrets.items():
        if secret.secret is None:
            raise UsageError(
                f"launch.secrets.{name} is a variable of this shell, and its value must not be "
                "written into an object",
                hint=f"keep it in a Secret: `kubectl create secret generic NAME "
                f'--from-literal=KEY="${secret.from_env}"`, and write '
                f"`{name}: {{secret: NAME, key: KEY}}`",
            )
        reference = {"name": secret.secret, "key": secret.key}
        entries.append({"name": name, "valueFrom": {"secretKeyRef": reference}})
    return entries


def _init_containers(spec: KubernetesSpec) -> list[Object]:
    if spec.agent_image is None:
        return []
    return [
        {
            "name": "agent",
            "image": spec.agent_image,
            "command": [
                "python3",
                "-P",
                "-m",
                "parctl.launcher.kubernetes.copy_agent",
                AGENT_MOUNT,
            ],
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            },
            "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
            "volumeMounts": [{"name": "agent", "mountPath": AGENT_MOUNT}],
        }
    ]


def _volumes(
    spec: KubernetesSpec, shared_memory: str, payload: Sequence[str]
) -> tuple[list[Object], list[Object]]:
    sources = [{"configMap": {"name": name}} for name in payload]
    volumes: list[Object] = [
        {"name": "plan", "projected": {"sources": sources}},
        {"name": "run", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": shared_memory}},
    ]
    mounts: list[Object] = [
        {"name": "plan", "mountPath": PLAN_MOUNT, "readOnly": True},
        {"name": "run", "mountPath": RUN_MOUNT},
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "shared-memory", "mountPath": "/dev/shm"},
    ]
    if spec.agent_image:
        volumes.append({"name": "agent", "emptyDir": {}})
        mounts.append({"name": "agent", "mountPath": AGENT_MOUNT})
    for name, volume in spec.volumes.items():
        volumes.append({"name": f"user-{name}", **_source(volume)})
        mount: Object = {"name": f"user-{name}", "mountPath": volume.mount}
        if volume.read_only:
            mount["readOnly"] = True
        if volume.sub_path is not None:
            mount["subPath"] = volume.sub_path
        mounts.append(mount)
    return volumes, mounts


def _source(volume: VolumeSpec) -> Object:
    if volume.claim is not None:
        return {"persistentVolumeClaim": {"claimName": volume.claim}}
    if volume.host_path is not None:
        return {"hostPath": {"path": volume.host_path}}
    if volume.config_map is not None:
        return {"configMap": {"name": volume.config_map}}
    if volume.secret is not None:
        return {"secret": {"secretName": volume.secret}}
    return {"emptyDir": {"sizeLimit": volume.empty}}
