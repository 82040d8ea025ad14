"""The coordinator of a run as objects: one small pod, and what it may do in its namespace."""

from parctl.launcher.kubernetes.names import (
    CONTROL_PORT,
    COORDINATOR,
    PLAN_MOUNT,
    ROLE,
    RUN,
    RUN_MOUNT,
    TERMINATION_LOG,
    Object,
    coordinator_name,
)
from parctl.launcher.kubernetes.pod_template import pod_security
from parctl.recipes.kubernetes_spec import KubernetesSpec

MODULE = "parctl.launcher.kubernetes.coordinator"
GPU_PRESENT = "nvidia.com/gpu.present"  # label of the GPU operator
RESTARTS = 1000  # of the coordinator itself: its end would be the end of the run
_WITHOUT_GPUS = {"matchExpressions": [{"key": GPU_PRESENT, "operator": "DoesNotExist"}]}
# rather on a node without GPUs; on a cluster that has none, on one with
AWAY_FROM_GPUS: Object = {
    "nodeAffinity": {
        "preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 100, "preference": _WITHOUT_GPUS}
        ]
    }
}


def coordinator_objects(
    spec: KubernetesSpec, run_id: str, *, image: str, payload: list[str]
) -> list[Object]:
    """Without metadata but the name: the renderer adds labels and namespace to every object."""
    name = coordinator_name(run_id)
    labels = {RUN: run_id, ROLE: COORDINATOR}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": labels,
            "ports": [{"name": "control", "port": CONTROL_PORT}],
        },
    }
    subject = {"kind": "ServiceAccount", "name": name}
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "backoffLimit": RESTARTS,
            "template": {
                "metadata": {"labels": labels},
                "spec": _pod(spec, run_id, image, payload),
            },
        },
    }
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": {"name": name},
            "rules": _rules(run_id),
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            "subjects": [subject],
        },
        service,
        job,
    ]


def _rules(run_id: str) -> list[Object]:
    """Pods of the namespace, since the API cannot limit a verb to a label; its own workload."""
    return [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "delete"]},
        {"apiGroups": [""], "resources": ["pods/status"], "verbs": ["patch"]},
        {
            "apiGroups": ["batch"],
            "resources": ["jobs"],
            "resourceNames": [run_id],
            "verbs": ["get", "patch"],
        },
        {
            "apiGroups": ["jobset.x-k8s.io"],
            "resources": ["jobsets"],
            "resourceNames": [run_id],
            "verbs": ["get", "patch"],
        },
    ]


def _pod(spec: KubernetesSpec, run_id: str, image: str, payload: list[str]) -> Object:
    sources = [{"configMap": {"name": name}} for name in payload]
    fields = {"PARCTL_POD": "metadata.name", "PARCTL_NAMESPACE": "metadata.namespace"}
    pod: Object = {
        "restartPolicy": "OnFailure",
        "serviceAccountName": coordinator_name(run_id),
        "securityContext": pod_security(),
        "enableServiceLinks": False,
        "affinity": AWAY_FROM_GPUS,
        "tolerations": [
            {"key": spec.gpu_resource, "operator": "Exists", "effect": "NoSchedule"},
            *(
                {
                    "key": f"node.kubernetes.io/{taint}",
                    "operator": "Exists",
                    "effect": "NoExecute",
                    "tolerationSeconds": int(spec.dead_node_s),
                }
                for taint in ("not-ready", "unreachable")
            ),
        ],
        "containers": [
            {
                "name": COORDINATOR,
                "image": image,
                "command": ["python3", "-P", "-m", MODULE],
                "env": [
                    {"name": "PARCTL_RUN_ID", "value": run_id},
                    {"name": "PARCTL_PLAN_FOLDER", "value": PLAN_MOUNT},
                    {"name": "PARCTL_RUN_FOLDER", "value": RUN_MOUNT},
                    {"name": "PARCTL_LAST_WORDS", "value": TERMINATION_LOG},
                    {"name": "PARCTL_CONTROL_PORT", "value": str(CONTROL_PORT)},
                    {"name": "HOME", "value": "/tmp"},
                    *(
                        {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
                        for name, path in fields.items()
                    ),
                ],
                "resources": {
                    "requests": {"cpu": "50m", "memory": "128Mi"},
                    "limits": {"memory": "512Mi"},
                },
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                },
                "terminationMessagePath": TERMINATION_LOG,
                "volumeMounts": [
                    {"name": "plan", "mountPath": PLAN_MOUNT, "readOnly": True},
                    {"name": "run", "mountPath": RUN_MOUNT},
                ],
            }
        ],
        "volumes": [
            {"name": "plan", "projected": {"sources": sources}},
            {"name": "run", "emptyDir": {}},
        ],
    }
    if spec.pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in spec.pull_secrets]
    return pod
