"""A layout: which rank sits on which device, and per mesh axis a proof of what its groups cross.

`RANK` stays torchrun's (ranks on earlier nodes + local rank). The layout is a permutation of the
ranks, shaped by the axes and handed to `DeviceMesh`: `ranks.reshape(axes)[..., i, :]` is a group.
Made by `parctl.topology.placement`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

Scope = Literal["device", "node", "domain", "cluster"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """Where one rank runs. `gpu` is the device index on its node and becomes the device mask."""

    rank: int
    node: str
    node_rank: int
    local_rank: int
    gpu: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What the groups of one axis cross, by the worst of them."""

    axis: str
    size: int  # ranks per group
    groups: int  # how many groups
    worst_link: str  # a LinkClass value
    bandwidth: float | None  # GB/s one way per device over the worst link; None: unknown
    scope: Scope  # smallest container of every group; `domain` is a rack-scale NVLink domain
    nodes_per_group: int  # most nodes that one group touches
    reason: str  # why it is so, in one sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    axes: Mapping[
        str, int
    ]  # name -> size, outermost first; axes of size 1 appear only when the recipe names them
    expert_axes: (
        Mapping[str, int] | None
    )  # e.g. {"pp": 2, "edp": 1, "ep": 2, "etp": 2} over the same ranks; None: no ep
    ranks: tuple[int, ...]  # row-major over `axes`
    slots: tuple[Slot, ...]  # by rank
    proofs: tuple[Proof, ...]
    explain: tuple[str, ...]  # why each constraint bound, and what was left unused

    @property
    def world_size(self) -> int:
        return len(self.ranks)

    @property
    def num_nodes(self) -> int:
        return len({slot.node for slot in self.slots})

    def groups(self, axis: str) -> list[list[int]]:
        """All groups of ranks along `axis`, ordered by the coordinates on the other axes.

        With axes {"fsdp": 2, "tp": 2} and ranks 0 1 2 3, `groups("tp")` is [[0, 1], [2, 3]].
        """
        sizes = list(self.axes.values())
        position = list(self.axes).index(axis)
        size, stride = sizes[position], prod(sizes[position + 1 :])
        return [
            [self.ranks[outer * size * stride + i * stride + inner] for i in range(size)]
            for outer in range(prod(sizes[:position]))
            for inner in range(stride)
        ]

    def coordinates(self, rank: int) -> dict[str, int]:
        """Mesh coordinates of a rank by axis."""
        flat = self.ranks.index(rank)
        result: dict[str, int] = {}
        for axis, size in reversed(list(self.axes.items())):
            flat, result[axis] = divmod(flat, size)
        return {axis: result[axis] for axis in self.axes}
