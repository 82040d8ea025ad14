"""Where a rank stands among those that work on the same requests, and what they exchange.

A replica is all ranks but those along `dp` and `fsdp`: each of these has requests of its own. Where
experts are dealt out over replicas, a replica's tokens need the others' experts: then all replicas
step together, and who has nothing to compute joins in with padding.
"""

import pickle
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parctl.runtime.parallel.mesh import RankMesh

HEADER_BYTES = 1024  # what fits costs one broadcast; the rest of a longer message another


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """None for a group: this rank is alone along that axis."""

    device: torch.device
    replica: dist.ProcessGroup | None = None  # in the order pp, cp, tp
    pp: dist.ProcessGroup | None = None
    cp: dist.ProcessGroup | None = None
    tp: dist.ProcessGroup | None = None
    together: tuple[dist.ProcessGroup, ...] = ()  # over all replicas, where they step together

    @property
    def is_leader(self) -> bool:
        """Whether requests come in here."""
        return self.replica is None or self.replica.rank() == 0

    @property
    def sampler(self) -> int:
        """The rank in the replica that samples: the first with the last stage."""
        if self.replica is None or self.pp is None:
            return 0
        return self.replica.size() - self.replica.size() // self.pp.size()

    @property
    def is_sampler(self) -> bool:
        return self.replica is None or self.replica.rank() == self.sampler

    @property
    def stage(self) -> int:
        return 0 if self.pp is None else self.pp.rank()

    @property
    def num_stages(self) -> int:
        return 1 if self.pp is None else self.pp.size()


def find_place(mesh: RankMesh) -> Place:
    """Return this rank's place. All ranks call it at once, because it makes groups."""
    sizes = mesh.sizes
    assert sizes["operator"] == 1, "inference does not split branches"
    replica = None
    if sizes["pp"] * sizes["cp"] * sizes["tp"] > 1:
        world = torch.arange(dist.get_world_size()).view(
            sizes["pp"], sizes["dp"] * sizes["fsdp"], sizes["cp"] * sizes["tp"]
        )
        for ranks in world.transpose(0, 1).flatten(1).tolist():
            group = dist.new_group(ranks)
            if dist.get_rank() in ranks:
                replica = group
    pp, tp = mesh.axis("pp"), mesh.axis("tp")
    data = [mesh.axis(name) for name in ("dp", "fsdp") if sizes[name] > 1]
    return Place(
        device=mesh.device,
        replica=replica,
        pp=None if pp is None else pp.get_group(),
        cp=None if mesh.cp is None else mesh.cp.get_group(),
        tp=None if tp is None else tp.get_group(),
        together=()
        if mesh.experts is None
        else tuple(axis.get_group() for axis in data if axis is not None),
    )


def any_of(place: Place, *flags: bool) -> list[bool]:
    """Return whether any replica's ranks in this place call with true, flag by flag."""
    counts = torch.tensor(flags, dtype=torch.int32)
    for group in place.together:
        dist.all_reduce(counts, group=group)
    return [bool(count) for count in counts.tolist()]


def tell(replica: dist.ProcessGroup | None, message: Any) -> Any:
    """Return on every rank what the leader calls this with. Host memory on both sides."""
    if replica is None:
        return message
    header = torch.zeros(HEADER_BYTES, dtype=torch.uint8)
    content = torch.empty(0, dtype=torch.uint8)
    if replica.rank() == 0:
        content = to_bytes(message)
        header[:8].view(torch.int64)[0] = len(content)
        begin = content[: HEADER_BYTES - 8]
        header[8 : 8 + len(begin)] = begin
    dist.broadcast(header, group=replica, group_src=0)
    length = int(header[:8].view(torch.int64)[0])
    rest = length - (HEADER_BYTES - 8)
    if rest <= 0:
        return message if replica.rank() == 0 else from_bytes(header[8 : 8 + length])
    tail = content[-rest:] if replica.rank() == 0 else torch.empty(rest, dtype=torch.uint8)
    dist.broadcast(tail, group=replica, group_src=0)
    return message if replica.rank() == 0 else from_bytes(torch.cat((header[8:], tail)))


def hand_to_leader(place: Place, message: Any) -> Any:
    """Bring a message from the rank that samples to the leader, where it is returned."""
    assert place.replica is not None and place.is_leader != place.is_sampler
    length = torch.zeros(1, dtype=torch.int64)
    if place.is_leader:
        dist.recv(length, group=place.replica, group_src=place.sampler)
        content = torch.empty(int(length), dtype=torch.uint8)
        dist.recv(content, group=place.replica, group_src=place.sampler)
        return from_bytes(content)
    content = to_bytes(message)
    length[0] = len(content)
    dist.send(length, group=place.replica, group_dst=0)
    dist.send(content, group=place.replica, group_dst=0)
    return None


def to_bytes(message: Any) -> Tensor:
    return torch.frombuffer(bytearray(pickle.dumps(message)), dtype=torch.uint8)


def from_bytes(content: Tensor) -> Any:
    return pickle.loads(content.numpy().tobytes())
