"""The same cluster with fewer devices: those that ranks run on, or may run on."""

from collections.abc import Collection
from dataclasses import replace

from parctl.topology.model import Hardware, Topology
from parctl.topology.placement.request import LayoutRequest

Device = tuple[str, int]  # node and device index


def only_devices(topology: Topology, used: Collection[Device]) -> Topology:
    """Drop nodes without a used device, and mark other devices as not to be used."""
    by_node: dict[str, set[int]] = {}
    for name, gpu in used:
        by_node.setdefault(name, set()).add(gpu)
    shared: dict[tuple[int, frozenset[int]], Hardware] = {}
    nodes = []
    for node in topology.nodes:
        if node.name in by_node:
            key = id(node.hardware), frozenset(by_node[node.name])
            if key not in shared:
                shared[key] = _without(node.hardware, by_node[node.name])
            nodes.append(replace(node, hardware=shared[key]))
    return replace(topology, nodes=tuple(nodes))


def as_asked_of(request: LayoutRequest, used: Collection[Device]) -> LayoutRequest:
    """The request once its nodes are chosen; a required node among them stays one."""
    nodes = {name for name, _ in used}
    require = tuple(name for name in request.require if name in nodes)
    return replace(request, exclude=(), require=require, spares=0)


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
