"""Lay a job out on the nodes that really came up, and say how that differs from the plan.

A plan is made before the cluster gives its answer. After rendezvous every rank says where it runs:
that is a `Slot` per rank. Its number stays, for whoever started it has counted; only the
permutation handed to `DeviceMesh` is computed anew, by the same pure function, on exactly these
devices::

    plan     rank 8 on node-1 gpu 0        slots of the plan    -> ranks by mesh coordinate
    reality  rank 8 on node-7 gpu 0        slots that came up   -> ranks by mesh coordinate

Every rank computes it from the same slots, given in any order, and gets the same answer. A layout
that would break the hard rule is refused, with the reason, before the first collective.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from parctl.errors import CannotPlaceError, UsageError
from parctl.topology.layout import Layout, Proof, Slot
from parctl.topology.model import Hardware, LinkClass, Topology
from parctl.topology.placement import LayoutRequest, lay_out

SCOPES = ("device", "node", "domain", "cluster")

Device = tuple[str, int]  # node and device index


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What reality changed. Empty: the plan holds."""

    missing_nodes: tuple[str, ...]  # of the plan, that did not come up
    new_nodes: tuple[str, ...]  # that came up and are not in the plan
    moved: int  # mesh coordinates that live on another device than planned
    worse: tuple[tuple[Proof, Proof], ...]  # planned and real proof of axes that cross more now
    better: tuple[tuple[Proof, Proof], ...]

    def __bool__(self) -> bool:
        return bool(self.missing_nodes or self.new_nodes or self.moved)

    @property
    def sentences(self) -> tuple[str, ...]:
        """The difference in words, worst first."""
        result = [f"worse than planned: {_change(*pair)}" for pair in self.worse]
        result += [f"better than planned: {_change(*pair)}" for pair in self.better]
        if self.missing_nodes:
            result.append(f"planned, but not there: {', '.join(self.missing_nodes)}")
        if self.new_nodes:
            result.append(f"there, but not planned: {', '.join(self.new_nodes)}")
        if self.moved:
            result.append(f"{self.moved:,} ranks of the mesh are on another device than planned")
        return tuple(result)


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    layout: Layout  # slots are those that came up
    difference: Difference


def bind(
    request: LayoutRequest, planned: Layout, slots: Iterable[Slot], topology: Topology
) -> Binding:
    """Lay `request` out on the devices of `slots`. `topology` describes at least their nodes.

    Raises CannotPlaceError when they cannot hold it, UsageError for slots that contradict
    themselves or the topology.
    """
    came_up = _checked(slots, request, topology)
    used = {(slot.node, slot.gpu) for slot in came_up}
    # the nodes are no longer a choice
    free = replace(request, exclude=(), require=(), spares=0)
    fresh = lay_out(free, _only(topology, used))
    rank_of = {(slot.node, slot.gpu): slot.rank for slot in came_up}
    ranks = tuple(rank_of[fresh.slots[rank].node, fresh.slots[rank].gpu] for rank in fresh.ranks)
    if request.linear and ranks != tuple(range(len(ranks))):
        raise CannotPlaceError(
            "the ranks of a script keep their own order, but its nodes came up in another one "
            "than planned",
            hint="start it again: the plan is made for the nodes that are there",
        )
    layout = replace(fresh, ranks=ranks, slots=came_up)
    return Binding(layout=layout, difference=compare(planned, layout))


def compare(planned: Layout, real: Layout) -> Difference:
    """What `real` changes of `planned`, which has the same axes."""
    nodes = {slot.node: None for slot in planned.slots}
    there = {slot.node: None for slot in real.slots}
    before, now = _devices(planned), _devices(real)
    proofs = {proof.axis: proof for proof in planned.proofs}
    pairs = [(proofs[proof.axis], proof) for proof in real.proofs if proof.axis in proofs]
    return Difference(
        missing_nodes=tuple(node for node in nodes if node not in there),
        new_nodes=tuple(node for node in there if node not in nodes),
        moved=sum(a != b for a, b in zip(before, now, strict=True)),
        worse=tuple((old, new) for old, new in pairs if _crossed(new) > _crossed(old)),
        better=tuple((old, new) for old, new in pairs if _crossed(new) < _crossed(old)),
    )


def _checked(slots: Iterable[Slot], request: LayoutRequest, topology: Topology) -> tuple[Slot, ...]:
    came_up = tuple(sorted(slots, key=lambda slot: slot.rank))
    if [slot.rank for slot in came_up] != list(range(len(came_up))):
        raise UsageError(f"ranks 0 to {len(came_up) - 1} must come up once each")
    if len(came_up) != request.world_size:
        raise CannotPlaceError(
            f"{request.arithmetic}, but {len(came_up):,} ranks came up",
            hint="plan again for what is there, or wait for the missing nodes",
        )
    known = {
        (node.name, device.index) for node in topology.nodes for device in node.hardware.devices
    }
    taken: set[Device] = set()
    for slot in came_up:
        if (slot.node, slot.gpu) not in known:
            raise UsageError(
                f"rank {slot.rank} runs on {slot.node} gpu {slot.gpu}, which "
                f"`{topology.name}` does not have",
                hint="discover the nodes that came up, and bind to that",
            )
        if (slot.node, slot.gpu) in taken:
            raise UsageError(f"two ranks run on {slot.node} gpu {slot.gpu}")
        taken.add((slot.node, slot.gpu))
    return came_up


def _only(topology: Topology, used: set[Device]) -> Topology:
    """The same cluster, where devices without a rank cannot be used."""
    by_node: dict[str, set[int]] = {}
    for name, gpu in used:
        by_node.setdefault(name, set()).add(gpu)
    nodes = [
        replace(node, hardware=_without(node.hardware, by_node[node.name]))
        for node in topology.nodes
        if node.name in by_node
    ]
    return replace(topology, nodes=tuple(nodes))


def _without(hardware: Hardware, kept: set[int]) -> Hardware:
    if all(device.index in kept for device in hardware.devices):
        return hardware
    return replace(
        hardware,
        devices=tuple(
            device
            if device.index in kept
            else replace(device, faults=(*device.faults, "no rank runs on it"))
            for device in hardware.devices
        ),
    )


def _devices(layout: Layout) -> list[Device]:
    """The device of every mesh coordinate, row-major."""
    slots = layout.slots
    return [(slots[rank].node, slots[rank].gpu) for rank in layout.ranks]


def _crossed(proof: Proof) -> tuple[int, float, int]:
    """Sorts proofs from best to worst: scope, then bandwidth, then the class of link."""
    return (
        SCOPES.index(proof.scope),
        -(proof.bandwidth or 0.0),
        list(LinkClass).index(LinkClass(proof.worst_link)),
    )


def _change(planned: Proof, real: Proof) -> str:
    return f"{real.axis}({real.size}) {_words(real)}, planned {_words(planned)}"


def _words(proof: Proof) -> str:
    rate = "" if proof.bandwidth is None else f" at {proof.bandwidth:g} GB/s"
    nodes = f"{proof.nodes_per_group} node{'s' * (proof.nodes_per_group > 1)}"
    return f"over {proof.worst_link}{rate}, {nodes} per group"
