"""The layout of where the pods really are.

A pod says which node it is on and, where a driver tells it, what its devices are. Those are truer
than what the launcher knew: the API server does not know how GPUs are joined. Fabric and NVLink
domains are known to the launcher alone. Both together make the topology that the plan is laid out
on again, by the same pure function that made it; if it breaks a hard rule there, it is refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from parctl.errors import CannotPlaceError
from parctl.planner.plan import Plan
from parctl.topology.layout import Layout
from parctl.topology.model import Device, Hardware, Node, Topology


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one pod is."""

    pod: str
    node: str
    hardware: Mapping[str, Any] | None  # a topology of one node as JSON; None: not to be seen


def bind_plan(
    plan: Plan, places: Sequence[Place], topology: Topology | None
) -> tuple[Plan, tuple[str, ...]]:
    """Return the plan as it will run, and what differs from the one that was made.

    Raises CannotPlaceError with a sentence when the pods' nodes cannot hold it.
    """
    by_node: dict[str, Place] = {}
    for place in places:
        if place.node in by_node:
            raise CannotPlaceError(
                f"pods {by_node[place.node].pod} and {place.pod} are both on node {place.node}, "
                "and the plan has one pod per node",
                hint="let the scheduler keep them apart: `launch.kubernetes.patch` must not remove "
                "the pods' affinity",
            )
        by_node[place.node] = place
    planned = {slot.node for slot in plan.layout.slots}
    seen = any(place.hardware is not None for place in places)
    if set(by_node) == planned and not seen:
        return plan, ()
    from parctl.planner.request import request_of  # numpy: only where something changed
    from parctl.topology.placement.late_binding import rebind

    real = _topology(plan, by_node, topology)
    there = {node.name: _usable(node, plan) for node in real.nodes}
    binding = rebind(request_of(plan), plan.layout, there, real)
    if not binding.difference:
        return plan, ()
    return _with_layout(plan, binding.layout), binding.difference.sentences


def bind_fewer(
    plan: Plan, places: Sequence[Place], topology: Topology | None, *, min_nodes: int
) -> tuple[Plan, tuple[str, ...]] | None:
    """Return the plan with less data parallelism on the pods that are up; None: there is none."""
    from parctl.launcher.nodes.fewer import plan_for_fewer  # numpy: only where something is lost

    by_node = {place.node: place for place in places}
    if not by_node or len(by_node) < len(places):
        return None
    count = _ranks_per_node(plan)
    real = _topology(plan, by_node, topology)
    nodes = [  # a pod has as many devices as it was given, whatever its node has
        node
        if len(node.hardware.devices) <= count
        else replace(node, hardware=_unknown_hardware(plan))
        for node in real.nodes
    ]
    return plan_for_fewer(plan, replace(real, nodes=tuple(nodes)), min_nodes=min_nodes)


def _with_layout(plan: Plan, layout: Layout) -> Plan:
    nodes = list(dict.fromkeys(slot.node for slot in layout.slots))
    return replace(plan, layout=layout, topology={**plan.topology, "nodes": nodes})


def _topology(plan: Plan, places: Mapping[str, Place], known: Topology | None) -> Topology:
    tiers = known.tiers if known else ()
    by_name = {node.name: node for node in known.nodes} if known else {}
    nodes = []
    for name, place in places.items():
        node = by_name.get(name)
        hardware = _own_hardware(place) or (node.hardware if node else _unknown_hardware(plan))
        if node is None:
            node = Node(name=name, hardware=hardware, domain=None, tiers=("?",) * len(tiers))
        nodes.append(replace(node, hardware=hardware))
    from parctl.topology.placement.order import natural_key

    nodes.sort(key=lambda node: natural_key(node.name))
    return Topology(name="pods", source="pods", tiers=tiers, nodes=tuple(nodes))


def _own_hardware(place: Place) -> Hardware | None:
    if place.hardware is None:
        return None
    from parctl.topology.store import topology_from_json

    return topology_from_json(place.hardware, where=f"pod {place.pod}").nodes[0].hardware


def _unknown_hardware(plan: Plan) -> Hardware:
    """As many devices as a pod has ranks, and nothing known of their links."""
    count = _ranks_per_node(plan)
    kind = "gpu" if plan.topology.get("kind") == "gpu" else "cpu"
    link = "HOST" if kind == "cpu" else "?"
    return Hardware(
        kind="gpu" if kind == "gpu" else "cpu",
        devices=tuple(
            Device(index=i, product=None, uuid=None, memory_bytes=None, numa=None, pci=None)
            for i in range(count)
        ),
        matrix=tuple(tuple("X" if i == j else link for j in range(count)) for i in range(count)),
        nics=(),
        nic_matrix=(),
        num_cpus=None,
        memory_bytes=None,
    )


def _usable(node: Node, plan: Plan) -> list[int] | None:
    """A pod was given as many devices as it has ranks: the first ones, as it counts them."""
    count = _ranks_per_node(plan)
    indexes = [device.index for device in node.hardware.devices]
    return None if len(indexes) <= count else indexes[:count]


def _ranks_per_node(plan: Plan) -> int:
    counts: dict[str, int] = {}
    for slot in plan.layout.slots:
        counts[slot.node] = counts.get(slot.node, 0) + 1
    return max(counts.values())
