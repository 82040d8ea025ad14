"""Broken situations: what is done to the cluster, and the beginning of the sentence that is true.

`python -m tests.launcher.kubernetes.record` makes each of them on a real cluster and writes the
objects that it finds to `situations/NAME.json`; the test reads those.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from parctl.recipes.kubernetes_spec import KubernetesSpec, VolumeSpec
from parctl.recipes.spec import SecretSpec

Object = dict[str, Any]
SLEEP = "import time; time.sleep(600)"
EAT = "import time; time.sleep(2); x = bytearray(600_000_000); time.sleep(600)"
FAIL = (
    "import os, time; time.sleep(1); assert os.environ['RANK'] != '1', 'bad luck'; time.sleep(60)"
)


def volume(**source: str) -> VolumeSpec:
    fields = dict.fromkeys(("claim", "host_path", "config_map", "secret", "empty"))
    return VolumeSpec(mount="/data", read_only=False, sub_path=None, **{**fields, **source})


def quota(**hard: str) -> Object:
    names = {name.replace("__", "/").replace("_", "."): value for name, value in hard.items()}
    return {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "small"},
        "spec": {"hard": names},
    }


def pod_policy(expression: str, message: str) -> list[Object]:
    """A ValidatingAdmissionPolicy on pods of the namespace NAMESPACE."""
    match = {"matchLabels": {"kubernetes.io/metadata.name": "NAMESPACE"}}
    rules = [
        {
            "apiGroups": [""],
            "apiVersions": ["v1"],
            "operations": ["CREATE"],
            "resources": ["pods"],
        }
    ]
    api = "admissionregistration.k8s.io/v1"
    return [
        {
            "apiVersion": api,
            "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": "no-pods"},
            "spec": {
                "failurePolicy": "Fail",
                "matchConstraints": {"namespaceSelector": match, "resourceRules": rules},
                "validations": [{"expression": expression, "message": message}],
            },
        },
        {
            "apiVersion": api,
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": "no-pods"},
            "spec": {"policyName": "no-pods", "validationActions": ["Deny"]},
        },
    ]


DEAD_WEBHOOK: Object = {
    "apiVersion": "admissionregistration.k8s.io/v1",
    "kind": "ValidatingWebhookConfiguration",
    "metadata": {"name": "dead"},
    "webhooks": [
        {
            "name": "dead.example.com",
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "timeoutSeconds": 1,
            "clientConfig": {"url": "https://127.0.0.1:9/deny"},
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "NAMESPACE"}},
            "rules": [
                {
                    "apiGroups": [""],
                    "apiVersions": ["v1"],
                    "operations": ["CREATE"],
                    "resources": ["pods"],
                }
            ],
        }
    ],
}
CLAIM: Object = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "unbound"},
    "spec": {
        "accessModes": ["ReadWriteMany"],
        "storageClassName": "nobody-makes-it",
        "resources": {"requests": {"storage": "1Gi"}},
    },
}
SECRET: Object = {
    "apiVersion": "v1",
    "kind": "Secret",
    "metadata": {"name": "store"},
    "stringData": {"other": "value"},
}


def queues(gpus: int, **choices: Any) -> list[Object]:
    """A LocalQueue `research` on a ClusterQueue of its own with so many GPUs."""
    api = "kueue.x-k8s.io/v1beta1"
    flavor = choices.get("flavor", "plain")
    resources: list[Object] = [
        {"name": "nvidia.com/gpu", "nominalQuota": gpus},
        {"name": "cpu", "nominalQuota": 100},
        {"name": "memory", "nominalQuota": "1000Gi"},
    ]
    return [
        {"apiVersion": api, "kind": "ResourceFlavor", "metadata": {"name": "plain"}, "spec": {}},
        {
            "apiVersion": api,
            "kind": "ClusterQueue",
            "metadata": {"name": "why"},
            "spec": {
                "namespaceSelector": {},
                "stopPolicy": choices.get("cluster_stop", "None"),
                "resourceGroups": [
                    {
                        "coveredResources": [each["name"] for each in resources],
                        "flavors": [{"name": flavor, "resources": resources}],
                    }
                ],
            },
        },
        {
            "apiVersion": api,
            "kind": "LocalQueue",
            "metadata": {"name": "research"},
            "spec": {"clusterQueue": "why", "stopPolicy": choices.get("stop", "None")},
        },
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What is different from a run that would succeed."""

    sentence: str  # how the first sentence begins, or what it holds
    spec: KubernetesSpec = field(default_factory=lambda: KubernetesSpec(kind="job"))
    program: str = SLEEP
    per_node: int = 2
    objects: Sequence[Object] = ()  # made before
    secrets: Mapping[str, SecretSpec] = field(default_factory=dict)
    launch: Mapping[str, Any] = field(default_factory=dict)
    act: str | None = None  # of `record.ACTS`, once the run is submitted
    before: str | None = None  # of `record.ACTS`, before it is


SITUATIONS: Mapping[str, Situation] = {
    "going-on": Situation(sentence="the run is going on"),
    "succeeded": Situation(sentence="the run is Succeeded", program="print(1)"),
    "cancelled": Situation(sentence="the run is Cancelled", act="cancel"),
    "rank-failed": Situation(
        sentence="rank 1 (node gpu-1, dp 1) failed with AssertionError: bad luck", program=FAIL
    ),
    "out-of-memory": Situation(
        sentence="was killed by SIGKILL",
        program=EAT,
        spec=KubernetesSpec(kind="job", memory="300Mi"),
    ),
    "took-too-long": Situation(
        sentence="the run took longer than launch.timeout_s allows", launch={"timeout_s": 4.0}
    ),
    "no-such-image": Situation(
        sentence="image parctl.test/absent:1 does not exist",
        launch={"image": "parctl.test/absent:1"},
        spec=KubernetesSpec(
            kind="job",
            patch={"Pod": {"spec": {"imagePullSecrets": []}}},
        ),
        act="never-pull",
    ),
    "registry-unreachable": Situation(
        sentence="the node cannot reach the registry of image nowhere.test/absent:1",
        launch={"image": "nowhere.test/absent:1"},
    ),
    "bad-image-name": Situation(
        sentence="`parctl.test/UPPER:1` is no name of an image",
        launch={"image": "parctl.test/UPPER:1"},
    ),
    "no-service-account": Situation(
        sentence="there is no service account trainer in the namespace",
        spec=KubernetesSpec(kind="job", service_account="trainer"),
    ),
    "no-priority-class": Situation(
        sentence="there is no PriorityClass high",
        spec=KubernetesSpec(kind="job", priority_class="high"),
    ),
    "quota-exceeded": Situation(
        sentence="quota small of the namespace is used up: a pod asks for "
        "requests.nvidia.com/gpu=2",
        objects=[quota(requests_nvidia_com__gpu="1")],
        act=None,
    ),
    "quota-wants-limits": Situation(
        sentence="quota small wants every pod to say how much it needs of limits.memory",
        objects=[quota(limits_memory="10Gi")],
    ),
    "pod-security": Situation(
        sentence="the namespace enforces the pod security standard restricted:latest",
        spec=KubernetesSpec(kind="job", host_network=True),
    ),
    "limit-range": Situation(
        sentence="a LimitRange of the namespace limits cpu to 500m, less than the pods ask for",
        objects=[
            {
                "apiVersion": "v1",
                "kind": "LimitRange",
                "metadata": {"name": "small"},
                "spec": {"limits": [{"type": "Container", "max": {"cpu": "500m"}}]},
            }
        ],
        spec=KubernetesSpec(kind="job", cpu="2"),
    ),
    "policy-denies": Situation(
        sentence="the admission policy no-pods refuses the pods: not on a Sunday",
        objects=pod_policy("false", "not on a Sunday"),
    ),
    "webhook-dead": Situation(
        sentence="the admission webhook dead.example.com does not answer", objects=[DEAD_WEBHOOK]
    ),
    "taint": Situation(
        sentence="the nodes have the taint dedicated=others",
        spec=KubernetesSpec(kind="job", node_selector={"kubernetes.io/hostname": "gpu-3"}),
        before="taint",
    ),
    "no-such-label": Situation(
        sentence="no free node has the labels pool=a100",
        spec=KubernetesSpec(kind="job", node_selector={"pool": "a100"}),
    ),
    "larger-than-any-node": Situation(
        sentence="a pod asks for 4 of nvidia.com/gpu, and the largest node has 2",
        per_node=4,
    ),
    "gpus-held": Situation(
        sentence="every node that could take a pod has too little of nvidia.com/gpu free",
        before="hold",
    ),
    "no-gpu-node": Situation(
        sentence="no node of the cluster has amd.com/gpu",
        spec=KubernetesSpec(kind="job", gpu_resource="amd.com/gpu"),
    ),
    "cordoned": Situation(
        sentence="the nodes are cordoned: gpu-3",
        spec=KubernetesSpec(kind="job", node_selector={"kubernetes.io/hostname": "gpu-3"}),
        before="cordon",
    ),
    "planned-nodes-absent": Situation(
        sentence="the nodes that the plan or `placement` names are not there",
        spec=KubernetesSpec(kind="job", nodes="planned"),
        launch={"nodes": ("gpu-8", "gpu-9")},
    ),
    "memory-too-large": Situation(
        sentence="a pod asks for 4000.0 GiB of memory, and the largest node has",
        spec=KubernetesSpec(kind="job", memory="4000Gi"),
    ),
    "no-claim": Situation(
        sentence="there is no PersistentVolumeClaim training in the namespace",
        spec=KubernetesSpec(kind="job", volumes={"data": volume(claim="training")}),
    ),
    "unbound-claim": Situation(
        sentence="a PersistentVolumeClaim of the run is not bound to a volume",
        objects=[CLAIM],
        spec=KubernetesSpec(kind="job", volumes={"data": volume(claim="unbound")}),
    ),
    "no-config-map": Situation(
        sentence="there is no configmap settings, which a volume of the run is made of",
        spec=KubernetesSpec(kind="job", volumes={"data": volume(config_map="settings")}),
    ),
    "no-secret": Situation(
        sentence="there is no Secret store in the namespace",
        secrets={"KEY": SecretSpec(from_env=None, secret="store", key="key")},
    ),
    "no-key": Situation(
        sentence="Secret store has no key key",
        objects=[SECRET],
        secrets={"KEY": SecretSpec(from_env=None, secret="store", key="key")},
    ),
    "plan-deleted": Situation(
        sentence="ConfigMap why-plan-deleted-plan, which holds the plan of the run, was deleted",
        act="delete-plan",
    ),
    "no-queue": Situation(
        sentence="there is no queue research in the namespace", launch={"queue": "research"}
    ),
    "queue-full": Situation(
        sentence="queue research is full",
        objects=queues(4),
        launch={"queue": "research"},
        before="hold-queue",
    ),
    "queue-too-small": Situation(
        sentence="queue research can never hold the run",
        objects=queues(2),
        launch={"queue": "research"},
    ),
    "queue-stopped": Situation(
        sentence="queue research is stopped (stopPolicy Hold)",
        objects=queues(8, stop="Hold"),
        launch={"queue": "research"},
    ),
    "cluster-queue-stopped": Situation(
        sentence="cluster queue why is stopped (stopPolicy HoldAndDrain)",
        objects=queues(8, cluster_stop="HoldAndDrain"),
        launch={"queue": "research"},
    ),
    "cluster-queue-broken": Situation(
        sentence="the cluster queue behind research is not active",
        objects=queues(8, flavor="absent"),
        launch={"queue": "research"},
    ),
    "suspended-by-hand": Situation(
        sentence="Job why-suspended-by-hand is suspended, and no queue holds it", act="suspend"
    ),
    "image-without-python": Situation(
        sentence="cannot start: there is no `no-such-python` in its image",
        spec=KubernetesSpec(
            kind="job",
            patch={"Pod": {"spec": {"activeDeadlineSeconds": 600}}},
        ),
        act="no-python",
    ),
    "jobset-controller-down": Situation(
        sentence="nothing has looked at JobSet why-jobset-controller-down",
        spec=KubernetesSpec(kind="jobset"),
        before="stop-jobset",
        act="wait-25",
    ),
    "kubelet-stopped": Situation(
        sentence="node gpu-2, where pod why-kubelet-stopped-", act="stop-kubelet"
    ),
    "node-dead-for-long": Situation(
        sentence="node gpu-2, where pod why-node-dead-for-long-", act="kill-node"
    ),
    "pod-evicted": Situation(sentence="pod why-pod-evicted-1-", act="evict"),
}
