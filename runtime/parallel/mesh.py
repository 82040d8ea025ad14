"""The mesh: this rank's place among all ranks, and the process group of every parallel axis.

The layout says which rank sits at which coordinates. torch sorts the ranks of every group, so a
`DeviceMesh` over a permutation gathers in an order that contradicts its own coordinates. Therefore
the permutation is applied one step earlier: a rank joins torch's world under its position in the
layout, and the mesh over positions is in order. `RANK` keeps its meaning everywhere else: in logs,
metrics, verdicts.

Axes are put in the order of AXES whatever the layout's order was: transposing an array changes none
of its groups, and torch wants data axes before `tp`.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from math import prod

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.distributed_c10d import _set_pg_timeout

from parctl.recipes.spec import AXES
from parctl.runtime.rendezvous import open_store
from parctl.topology.layout import Layout

LONG_TIMEOUT = timedelta(minutes=30)  # where ranks wait for slow nodes and file systems


@dataclass(frozen=True, slots=True, kw_only=True)
class RankMesh:
    """All axes of AXES are in `sizes` and `coordinates`: an absent one has size 1, coordinate 0."""

    rank: int  # RANK, not torch's
    device: torch.device
    devices: DeviceMesh  # axes larger than 1, and `fsdp` when the model is wrapped though alone
    tokens: DeviceMesh | None  # with its `cp` axis: the ranks that share one sequence
    experts: DeviceMesh | None  # `pp [edp_replicas] edp ep` and `etp` or `tp`, over the same ranks
    sizes: Mapping[str, int]
    coordinates: Mapping[str, int]

    def axis(self, *names: str) -> DeviceMesh | None:
        """Return the sub-mesh of `devices` over those of `names` that exist, None without any.

        The ranks of a cp group hold the same weights, so `fsdp` here (`dp` where there is no fsdp)
        runs over cp too: gradients are summed, and states sharded, over both.
        """
        present = tuple(name for name in names if name in (self.devices.mesh_dim_names or ()))
        return self.devices[present] if present else None

    @property
    def cp(self) -> DeviceMesh | None:
        return self.tokens["cp"] if self.tokens else None

    @property
    def data_size(self) -> int:
        """How many ways the global batch is split."""
        return self.sizes["dp"] * self.sizes["fsdp"]

    @property
    def data_rank(self) -> int:
        return self.coordinates["dp"] * self.sizes["fsdp"] + self.coordinates["fsdp"]

    @property
    def token_rank(self) -> int:
        """The rank among all that hold different tokens."""
        return self.data_rank * self.sizes["cp"] + self.coordinates["cp"]

    @property
    def num_equal_losses(self) -> int:
        """How many ranks compute the same loss over the same tokens."""
        return self.sizes["operator"] * self.sizes["tp"]

    def describe(self) -> str:
        """Return the axes in words.

        >>> mesh.describe()
        'fsdp 2 x tp 2'
        """
        parts = [f"{name} {size}" for name, size in self.sizes.items() if size > 1]
        return " x ".join(parts) or "one rank"


def choose_device() -> torch.device:
    """Return the accelerator of LOCAL_RANK, else the CPU.

    The launcher's device mask decides which accelerator that is, and hides all from CPU layouts.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def join_world(layout: Layout, device: torch.device) -> None:
    """Meet all ranks where RANK 0 listens, and become torch's rank of our place in the layout."""
    rank = int(os.environ["RANK"])
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=open_store(rank, layout.world_size, LONG_TIMEOUT),
        rank=layout.ranks.index(rank),
        world_size=layout.world_size,
        timeout=LONG_TIMEOUT,
    )


def build_mesh(layout: Layout, device: torch.device, *, wrap_alone: bool) -> RankMesh:
    """Build the groups of every axis. All ranks call it at the same time, after `join_world`.

    `wrap_alone` keeps an `fsdp` axis of size 1 when there is no data axis, so that mixed precision
    has its wrapper.
    """
    sizes = {name: layout.axes.get(name, 1) for name in AXES}
    assert prod(sizes.values()) == layout.world_size, (sizes, layout.world_size)
    given = list(layout.axes)
    positions = torch.arange(layout.world_size).reshape(tuple(layout.axes.values()))
    positions = positions.permute([given.index(name) for name in AXES if name in given])
    positions = positions.reshape(tuple(sizes.values()))  # axes that are absent too

    merged = {name: size for name, size in sizes.items() if name != "cp"}
    sharing = "fsdp" if sizes["fsdp"] > 1 else "dp"
    merged[sharing] *= sizes["cp"]
    names = [name for name in merged if merged[name] > 1]
    if not names or (wrap_alone and not {"dp", "fsdp"} & set(names)):
        names = [name for name in merged if name in names or name == "fsdp"]
    # where cp was outside fsdp, the two as one axis are not in order: who holds which shard is free
    in_order = positions.reshape(tuple(merged.values())).sort(dim=list(merged).index(sharing))[0]
    devices = DeviceMesh(
        device.type,
        in_order.reshape([merged[name] for name in names]),
        mesh_dim_names=tuple(names),
    )
    rank = layout.ranks[dist.get_rank()]
    own = layout.coordinates(rank)
    return RankMesh(
        rank=rank,
        device=device,
        devices=devices,
        tokens=DeviceMesh(device.type, positions, mesh_dim_names=AXES) if sizes["cp"] > 1 else None,
        experts=expert_mesh(layout, device),
        sizes=sizes,
        coordinates={name: own.get(name, 0) for name in AXES},
    )


def expert_mesh(layout: Layout, device: torch.device) -> DeviceMesh | None:
    """Deal the same ranks out again over the expert axes, as the layout did for its proofs."""
    if layout.expert_axes is None:
        return None
    from parctl.topology.placement.experts import expert_positions  # most models have no experts

    positions = expert_positions(layout.axes, layout.expert_axes)
    sizes = dict(layout.expert_axes)
    replicas = layout.axes.get("dp", 1)
    if replicas > 1 and layout.axes.get("fsdp", 1) > 1 and sizes["edp"] % replicas == 0:
        # replicas of shards: dp is the outer part of edp
        sizes["edp"] //= replicas
        names = list(sizes)
        names.insert(names.index("edp"), "edp_replicas")
        sizes = {name: sizes.get(name, replicas) for name in names}
    return DeviceMesh(
        device.type,
        torch.from_numpy(positions.reshape(tuple(sizes.values())).copy()),
        mesh_dim_names=tuple(sizes),
    )


def set_timeout(mesh: RankMesh, timeout: timedelta) -> None:
    """Change how long a collective of any axis may take."""
    groups = {dist.group.WORLD, *mesh.devices.get_all_groups()}
    for more in (mesh.tokens, mesh.experts):
        groups.update(more.get_all_groups() if more else ())
    for group in groups:
        assert group is not None
        _set_pg_timeout(timeout, group)
