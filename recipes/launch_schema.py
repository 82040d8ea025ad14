"""What people may write about launching, as pydantic models.

The one idea: where a recipe runs is apart from what it computes; all of it is under `launch`.
"""

from typing import Annotated, Literal

from pydantic import Field

from parctl.recipes.fields import Environment, Fields, Positive, Text, VariableName
from parctl.recipes.kubernetes_schema import Image, KubernetesFields, Name
from parctl.recipes.ray_schema import RayFields

Queue = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?$")]


class SecretFields(Fields):
    """Where a secret value comes from; the value itself is never read by parctl's planning."""

    from_env: VariableName | None = Field(
        default=None, description="variable of the launching shell", examples=["HF_TOKEN"]
    )
    secret: Name | None = Field(
        default=None, description="Kubernetes Secret", examples=["hugging-face"]
    )
    key: Annotated[str, Field(pattern=r"^[-._A-Za-z0-9]+$")] | None = Field(
        default=None, description="key in that Secret", examples=["token"]
    )


class LaunchFields(Fields):
    """Where and how to run."""

    backend: Literal["local", "ray", "kubernetes"] | None = Field(
        default=None, description="default: the current context", examples=["local"]
    )
    retries: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=0, description="restarts after a failure", examples=[3]
    )
    queue: Queue | None = Field(default=None, description="of Kueue", examples=["research"])
    image: Image | None = Field(default=None, description="container image", examples=["parctl:1"])
    env: Environment = Field(
        default={}, description="variables of every rank", examples=[{"NCCL_DEBUG": "WARN"}]
    )
    secrets: dict[VariableName, SecretFields] = Field(
        default={},
        description="variables whose values stay secret",
        examples=[{"HF_TOKEN": {"from_env": "HF_TOKEN"}}],
    )
    timeout_s: Positive | None = Field(
        default=None, description="of the whole run, seconds; default none", examples=[3600.0]
    )
    stop_grace_s: Annotated[float, Field(ge=0, le=86400)] = Field(
        default=30.0, description="seconds between SIGTERM and SIGKILL", examples=[30.0]
    )
    workdir: Text | None = Field(
        default=None,
        description="folder that is sent along, where the ranks start",
        examples=["./src"],
    )
    price_per_gpu_hour: Positive | None = Field(
        default=None,
        description="of a device, in any currency; a plan then says what the run costs",
        examples=[2.5],
    )
    kubernetes: KubernetesFields | None = Field(
        default=None, description="for that back end", examples=[{"kind": "job"}]
    )
    ray: RayFields | None = Field(
        default=None, description="for that back end", examples=[{"wait_s": 3600.0}]
    )
