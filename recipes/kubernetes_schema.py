"""What people may write under `launch.kubernetes`, as pydantic models.

The one idea: a recipe says here only what a plan cannot know - names that exist in one cluster and
choices that its administrators made.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from parctl.recipes.fields import Fields, as_list
from parctl.recipes.kubernetes_spec import (
    DNS_LABEL,
    Kind,
    KubernetesSpec,
    PatchKind,
    Recovery,
    TolerationSpec,
    VolumeSpec,
)

if TYPE_CHECKING:
    from parctl.recipes.build import Context

LABEL_KEY = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]
Names = Annotated[list[Name], BeforeValidator(as_list, json_schema_input_type=Name | list[Name])]
Label = Annotated[str, Field(pattern=DNS_LABEL)]
LabelKey = Annotated[str, Field(pattern=LABEL_KEY)]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")]
AbsolutePath = Annotated[str, Field(pattern=r"^/[^:]*$")]
InnerPath = Annotated[str, Field(pattern=r"^[^/].*$", max_length=4096)]
Image = Annotated[str, Field(pattern=r"^[^\s]+$", max_length=4096)]
# an extended resource: those of Kubernetes itself have no domain
RESOURCE = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
Resource = Annotated[str, Field(pattern=RESOURCE)]
SOURCES = ("claim", "host_path", "config_map", "secret", "empty")


def _whole_name(kind: object) -> object:
    """LeaderWorkerSets are called `lws` by their own resource."""
    return "leaderworkerset" if kind == "lws" else kind


class VolumeFields(Fields):
    """What is mounted in every pod: exactly one of claim, host_path, config_map, secret, empty."""

    mount: AbsolutePath = Field(description="where", examples=["/mnt/shared"])
    claim: Name | None = Field(
        default=None, description="PersistentVolumeClaim", examples=["training-data"]
    )
    host_path: AbsolutePath | None = Field(
        default=None, description="folder of the node", examples=["/mnt/nfs"]
    )
    config_map: Name | None = Field(default=None, description="ConfigMap", examples=["settings"])
    secret: Name | None = Field(default=None, description="Secret", examples=["certificates"])
    empty: Quantity | None = Field(
        default=None, description="size of a folder that lives as long as the pod", examples=["9Gi"]
    )
    read_only: bool = Field(default=False, description="no pod writes to it", examples=[True])
    sub_path: InnerPath | None = Field(
        default=None, description="folder inside the volume", examples=["team-a"]
    )


class TolerationFields(Fields):
    """A taint that does not keep the pods away. GPU taints are tolerated without it."""

    key: LabelKey | None = Field(
        default=None, description="of the taint; default: every taint", examples=["dedicated"]
    )
    operator: Literal["Exists", "Equal"] | None = Field(
        default=None, description="default: Equal where there is a value", examples=["Exists"]
    )
    value: str | None = Field(default=None, description="of the taint", examples=["training"])
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="default: every effect", examples=["NoSchedule"]
    )
    seconds: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="of NoExecute; default: for ever", examples=[60]
    )


class KubernetesFields(Fields):
    """What only a Kubernetes cluster needs to know."""

    kind: Annotated[Kind, BeforeValidator(_whole_name, json_schema_input_type=Kind)] = Field(
        default="auto",
        description="of the workload; auto, by what the cluster has: a LeaderWorkerSet for task "
        "serve, else a JobSet, else a Job; rayjob needs KubeRay",
        examples=["job"],
    )
    namespace: Label | None = Field(
        default=None, description="default: the context's", examples=["team-a"]
    )
    recovery: Recovery = Field(
        default="native",
        description="who restarts: the cluster's own controllers, or a coordinator pod of the run",
        examples=["coordinator"],
    )
    agent_image: Image | None = Field(
        default=None,
        description="an image with parctl, copied into pods whose `launch.image` has none",
        examples=["parctl:1"],
    )
    gpu_resource: Resource = Field(
        default="nvidia.com/gpu", description="extended resource", examples=["amd.com/gpu"]
    )
    cpu: Quantity | None = Field(
        default=None, description="of a pod; default: half a core per rank", examples=["16"]
    )
    memory: Quantity | None = Field(
        default=None, description="of a pod; default: the plan's estimate", examples=["512Gi"]
    )
    shared_memory: Quantity | None = Field(
        default=None, description="size of /dev/shm; default: by the plan", examples=["16Gi"]
    )
    host_network: bool = Field(
        default=False, description="use the node's own network", examples=[True]
    )
    rdma: dict[Resource, Annotated[int, Field(ge=1, le=64)]] = Field(
        default={},
        description="extended resources of the fast network, per pod",
        examples=[{"rdma/hca_shared_devices_a": 1}],
    )
    topology: LabelKey | None = Field(
        default=None,
        description="node label whose one value all pods must share; needs a Kueue queue",
        examples=["cloud.provider.com/topology-rack"],
    )
    nodes: Literal["preferred", "planned"] = Field(
        default="preferred",
        description="planned: the nodes of the plan and no others",
        examples=["planned"],
    )
    node_selector: dict[LabelKey, str] = Field(
        default={}, description="labels that nodes must have", examples=[{"pool": "a100"}]
    )
    tolerations: list[TolerationFields] = Field(
        default=[], description="of taints", examples=[[{"key": "dedicated"}]]
    )
    volumes: dict[Label, VolumeFields] = Field(
        default={},
        description="what is mounted",
        examples=[{"shared": {"mount": "/mnt/shared", "claim": "training"}}],
    )
    priority_class: Name | None = Field(
        default=None, description="PriorityClass of the pods", examples=["high"]
    )
    service_account: Name | None = Field(
        default=None, description="of the pods; default: the namespace's", examples=["trainer"]
    )
    pull_secrets: Names = Field(
        default=[], description="Secrets that open the registry", examples=[["registry"]]
    )
    network_policy: bool = Field(
        default=True,
        description="let only the pods of the run reach its ranks",
        examples=[False],
    )
    gather_timeout_s: Annotated[float, Field(gt=0, le=1e7)] = Field(
        default=1800.0, description="seconds for all pods to come up", examples=[600.0]
    )
    preflight: bool = Field(
        default=False,
        description="test every node first, and name the one that is bad",
        examples=[True],
    )
    min_nodes: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="a restart may use as few, with less data parallelism; default: no fewer",
        examples=[3],
    )
    rejoin_s: Annotated[float, Field(ge=0, le=1e7)] = Field(
        default=60.0,
        description="seconds that a lost pod may take to come back before `min_nodes` counts",
        examples=[300.0],
    )
    dead_node_s: Annotated[float, Field(ge=0, le=86400)] = Field(
        default=30.0,
        description="seconds until pods leave a node that does not answer",
        examples=[60.0],
    )
    patch: dict[PatchKind, dict[str, Any]] = Field(
        default={},
        description="JSON merge patch by kind of object, `Pod` for the pods; the last resort",
        examples=[{"Pod": {"spec": {"schedulerName": "volcano"}}}],
    )


def build_kubernetes(fields: KubernetesFields | None, context: "Context") -> KubernetesSpec | None:
    """Turn checked fields into the spec; None when the recipe says nothing."""
    if fields is None:
        return None
    if fields.gpu_resource in fields.rdma:
        path = f"launch.kubernetes.rdma.{fields.gpu_resource}"
        context.fault(path, "these are the GPUs, which the plan counts", "leave it out")
    mounts = [volume.mount.rstrip("/") for volume in fields.volumes.values()]
    for name, volume in fields.volumes.items():
        if mounts.count(volume.mount.rstrip("/")) > 1:
            path = f"launch.kubernetes.volumes.{name}.mount"
            context.fault(path, f"{volume.mount} has several volumes", "one place for each")
    for number, each in enumerate(fields.tolerations):
        _check_toleration(each, f"launch.kubernetes.tolerations[{number}]", context)
    values = {name: getattr(fields, name) for name in KubernetesFields.model_fields}
    return KubernetesSpec(
        **values
        | {
            "volumes": {
                name: _volume(volume, f"launch.kubernetes.volumes.{name}", context)
                for name, volume in fields.volumes.items()
            },
            "tolerations": tuple(_toleration(toleration) for toleration in fields.tolerations),
            "pull_secrets": tuple(fields.pull_secrets),
            "gather_timeout_s": float(fields.gather_timeout_s),
            "rejoin_s": float(fields.rejoin_s),
            "dead_node_s": float(fields.dead_node_s),
        }
    )


def _volume(fields: VolumeFields, path: str, context: "Context") -> VolumeSpec:
    given = [name for name in SOURCES if getattr(fields, name) is not None]
    if len(given) != 1:
        found = " and ".join(f"`{name}`" for name in given) or "none"
        context.fault(path, f"expected exactly one source, found {found}", "`claim: NAME` is one")
    if fields.mount.rstrip("/") in ("", "/parctl", "/dev/shm", "/tmp"):
        context.fault(
            f"{path}.mount", f"{fields.mount} is used by parctl itself", "choose another place"
        )
    if fields.sub_path is not None and ".." in fields.sub_path.split("/"):
        context.fault(f"{path}.sub_path", "`..` leads out of the volume", "a folder inside of it")
    return VolumeSpec(**fields.model_dump())


def _check_toleration(fields: TolerationFields, path: str, context: "Context") -> None:
    if fields.operator == "Exists" and fields.value is not None:
        context.fault(path, "`Exists` asks for no value", "leave out `value`, or use `Equal`")
    if fields.key is None and (fields.operator == "Equal" or fields.value is not None):
        context.fault(path, "a value without a `key` is no taint's", "add `key: dedicated`")
    if fields.seconds is not None and fields.effect != "NoExecute":
        context.fault(path, "`seconds` counts for NoExecute alone", "add `effect: NoExecute`")


def _toleration(fields: TolerationFields) -> TolerationSpec:
    operator = fields.operator or ("Exists" if fields.value is None else "Equal")
    return TolerationSpec(**fields.model_dump() | {"operator": operator})
