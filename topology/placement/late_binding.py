"""Lay a job out on the nodes that really came up, and say how that differs from the plan.

A plan is made before the cluster gives its answer. After rendezvous every rank says where it runs:
that is a `Slot` per rank. Its number stays, for whoever started it has counted; only the
permutation handed to `DeviceMesh` is computed anew, by the same pure function, on exactly these
devices::

    plan     rank 8 on node-1 gpu 0        slots of the plan    -> ranks by mesh coordinate
    reality  rank 8 on node-7 gpu 0        slots that came up   -> ranks by mesh coordinate

Every rank computes it from the same slots, given in any order, and gets the same answer (`bind`).
Who starts the ranks itself and is given nodes first (Ray, Kubernetes) may still number them:
`rebind` places the job on those nodes, on the planned ones among them if they suffice. A layout
that would break the hard rule is refused, with the reason, before the first collective.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from parctl.errors import CannotPlaceError, UsageError
from parctl.topology.layout import Layout, Proof, Slot
from parctl.topology.model import LinkClass, Topology
from parctl.topology.names import few
from parctl.topology.placement import LayoutRequest, lay_out
from parctl.topology.placement.restrict import Device, as_asked_of, only_devices

SCOPES = ("device", "node", "domain", "cluster")


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
    fresh = lay_out(as_asked_of(request, used), only_devices(topology, used))
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


def rebind(
    request: LayoutRequest,
    planned: Layout,
    there: Mapping[str, Collection[int] | None],
    topology: Topology,
) -> Binding:
    """Place `request` anew on the nodes that are there, and number its ranks.

    `there`: device indexes that may be used, by node; None: all of them. `topology` describes at
    least these nodes. Raises CannotPlaceError with a sentence on what is missing and the smallest
    change, UsageError for a node or device that the topology does not have.
    """
    known = {n.name: [d.index for d in n.hardware.devices] for n in topology.nodes}
    given: set[Device] = set()
    for name, indexes in sorted(there.items()):
        for index in known.get(name, [0]) if indexes is None else indexes:
            _check_known(known, name, index, "the job may use")
            given.add((name, index))
    nodes = {slot.node for slot in planned.slots}
    on_planned = {device for device in given if device[0] in nodes}
    tried = [on_planned, given] if nodes <= set(there) and on_planned != given else [given]
    for devices in tried:
        try:
            layout = lay_out(as_asked_of(request, devices), only_devices(topology, devices))
        except CannotPlaceError as error:
            refusal = error
        else:
            return Binding(layout=layout, difference=compare(planned, layout))
    missing = [node for node in dict.fromkeys(s.node for s in planned.slots) if node not in there]
    if not missing:
        raise refusal
    lack = f"{len(missing)} of {len(nodes)} planned nodes are not there ({few(missing)})"
    raise CannotPlaceError(f"{lack}: {refusal.message}", hint=refusal.hint) from refusal


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
    known = {n.name: [d.index for d in n.hardware.devices] for n in topology.nodes}
    taken: set[Device] = set()
    for slot in came_up:
        _check_known(known, slot.node, slot.gpu, f"rank {slot.rank} runs on")
        if (slot.node, slot.gpu) in taken:
            raise UsageError(f"two ranks run on {slot.node} gpu {slot.gpu}")
        taken.add((slot.node, slot.gpu))
    return came_up


def _check_known(known: Mapping[str, list[int]], node: str, gpu: int, what: str) -> None:
    if gpu not in known.get(node, ()):
        raise UsageError(
            f"{what} {node} gpu {gpu}, which the topology of the nodes does not have",
            hint="discover the nodes that came up, and bind to that",
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
