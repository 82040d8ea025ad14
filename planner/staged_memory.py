"""Memory of a job by pipeline stage: which stage needs most, and whether that finds room.

All ranks of a pipeline stage hold the same, so the cost does not depend on how many ranks there
are. `fits` compares the worst stage with the usable part of the smallest device: the allocator
never gets all of it. None means that nobody told us the memory of the devices.
"""

from abc import ABC, abstractmethod
from dataclasses import Field, dataclass, fields
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from parctl.planner.activations import Kind

# share of device memory that tensors can fill before fragmentation ends the run: 0.88 to 0.92 is
# reported for PyTorch's expandable segments on 80 GB devices (Megatron-Bridge guides)
USABLE_FRACTION = 0.90


class Stage(Protocol):
    """Bytes on each rank of a stage, term by term: a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def stage(self) -> int: ...

    @property
    def total(self) -> int: ...


AnyStage = TypeVar("AnyStage", bound=Stage)


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedMemory(ABC, Generic[AnyStage]):
    """The stages of a job beside the memory of its devices, in bytes."""

    stages: tuple[AnyStage, ...]
    device_bytes: int | None
    usable_fraction: float = USABLE_FRACTION
    kind: Kind

    @property
    def worst(self) -> AnyStage:
        return max(self.stages, key=lambda stage: stage.total)

    @property
    def usable_bytes(self) -> int | None:
        return None if self.device_bytes is None else int(self.device_bytes * self.usable_fraction)

    @property
    def fits(self) -> bool | None:
        usable = self.usable_bytes
        return None if usable is None else self.worst.total <= usable

    @abstractmethod
    def own_json(self) -> dict[str, Any]:
        """What only this kind of job has to say."""

    def to_json(self) -> dict[str, Any]:
        return {
            "fits": self.fits,
            "worst_stage": self.worst.stage,
            "total_bytes": self.worst.total,
            "usable_bytes": self.usable_bytes,
            "device_bytes": self.device_bytes,
            "usable_fraction": self.usable_fraction,
            "kind": self.kind,
            **self.own_json(),
            "stages": [
                {field.name: getattr(stage, field.name) for field in fields(stage)}
                | {"total": stage.total}
                for stage in self.stages
            ],
        }
