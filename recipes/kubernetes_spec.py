"""`launch.kubernetes` as data: what a cluster needs to know that no other back end asks for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["auto", "jobset", "job", "rayjob", "leaderworkerset"]
Recovery = Literal["native", "coordinator"]
DNS_LABEL = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"  # what names a namespace
# `Pod` is the template of all of them
PatchKind = Literal[
    "Pod",
    "Job",
    "JobSet",
    "RayJob",
    "LeaderWorkerSet",
    "ConfigMap",
    "Service",
    "NetworkPolicy",
    "ServiceAccount",
    "Role",
    "RoleBinding",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeSpec:
    """What is mounted in every pod. Exactly one source is set."""

    mount: str  # absolute path
    claim: str | None  # PersistentVolumeClaim
    host_path: str | None  # of the node
    config_map: str | None
    secret: str | None
    empty: str | None  # size of a folder that lives as long as the pod: "10Gi"
    read_only: bool
    sub_path: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TolerationSpec:
    key: str | None  # None: every taint
    operator: Literal["Exists", "Equal"]
    value: str | None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None  # None: every effect
    seconds: int | None  # None: for ever


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesSpec:
    """How a plan becomes objects. The defaults are those of a recipe that says nothing."""

    # auto: what the cluster has: for `task: serve` a LeaderWorkerSet, else a JobSet, else a Job
    kind: Kind = "auto"
    namespace: str | None = None  # None: the context's
    recovery: Recovery = "native"
    agent_image: str | None = None  # with parctl in it, for a `launch.image` that has none
    gpu_resource: str = "nvidia.com/gpu"
    cpu: str | None = None  # of a pod; None: half a core per rank
    memory: str | None = None  # of a pod; None: by the plan's estimate
    shared_memory: str | None = None  # size of /dev/shm; None: by the plan
    host_network: bool = False
    rdma: Mapping[str, int] = field(default_factory=dict)  # extended resource -> count per pod
    topology: str | None = None  # node label whose one value all pods must share, through Kueue
    nodes: Literal["preferred", "planned"] = "preferred"  # planned: no other node will do
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[TolerationSpec, ...] = ()
    volumes: Mapping[str, VolumeSpec] = field(default_factory=dict)
    priority_class: str | None = None
    service_account: str | None = None
    pull_secrets: tuple[str, ...] = ()
    network_policy: bool = True
    gather_timeout_s: float = 1800.0  # for all pods to come up
    preflight: bool = False  # every node multiplies and reduces first; one that is bad is named
    min_nodes: int | None = None  # a restart may use as few, with less data parallelism
    rejoin_s: float = 60.0  # how long a lost pod may come back before the run goes on with fewer
    dead_node_s: float = 30.0  # until pods leave a node that does not answer
    patch: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by kind; RFC 7386
