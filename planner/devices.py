"""What the planner needs to know of a cluster's devices, as one value.

A device with a fault is not counted. Equal nodes share one `Hardware`, so the cost does not grow
with the cluster.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from parctl.topology.layout import Layout
from parctl.topology.model import Device, Hardware, Topology
from parctl.topology.placement.hard_rule import inspect

MOST_FAULTS = 3  # told one by one


@dataclass(frozen=True, slots=True, kw_only=True)
class Devices:
    count: int  # without faults
    kind: Literal["gpu", "cpu"]
    memory_bytes: int | None  # of the smallest device; None: one of them is unknown
    islands: Mapping[int, int]  # devices that tensor parallelism can join -> how many such sets
    products: tuple[str, ...]  # by number of devices, most first; unknown ones left out

    @property
    def largest_island(self) -> int:
        return max(self.islands, default=0)

    def usable(self, tp: int) -> int:
        """How many devices tp groups can use inside islands: 6 devices hold one group of 4."""
        if tp == 1 or tp > self.largest_island:
            return self.count // tp * tp
        return sum(number * (size // tp * tp) for size, number in self.islands.items())

    def text(self, number: int) -> str:
        """Name a number of devices.

        >>> Devices(count=8, kind="gpu", memory_bytes=None, islands={8: 1}, products=()).text(1)
        '1 GPU'
        """
        noun = "GPU" if self.kind == "gpu" else "CPU device"
        return f"{number:,} {noun}{'' if number == 1 else 's'}"


def survey(topology: Topology, *, strict_node: bool, allow_pcie_tp: bool = False) -> Devices:
    """Count the usable devices of a cluster and find what they have in common."""
    nodes = Counter(id(node.hardware) for node in topology.nodes)
    hardware = {id(node.hardware): node.hardware for node in topology.nodes}
    usable = {key: _without_faults(item) for key, item in hardware.items()}
    insides = {key: inspect(item, allow_pcie=False) for key, item in hardware.items()}
    islands: Counter[int] = Counter()
    domains: Counter[str] = Counter()
    alone: Counter[int] = Counter()
    for node in topology.nodes:
        key = id(node.hardware)
        inside = insides[key]
        if node.domain is None or strict_node or not inside.is_one_mesh:
            alone[key] += 1
            continue
        joined = len(inside.members(False))
        domains[node.domain] += joined
        # a device without NVLink is in no group of its domain
        islands[1] += len(usable[key]) - joined
    islands.update(domains.values())
    bare = {key: not allow_pcie_tp and insides[key].pcie_only for key in alone}
    # where no node can hold a tp group, the layout is to say so
    only_bare = all(bare.values()) and not domains
    for key, number in alone.items():
        sizes = _island_sizes(hardware[key], usable[key])
        for size in [1] * len(usable[key]) if bare[key] and not only_bare else sizes:
            islands[size] += number
    devices = {
        (key, position): (hardware[key].devices[position], number)
        for key, number in nodes.items()
        for position in usable[key]
    }
    memory_bytes, products = _in_common(devices.values())
    islands = +islands  # without sets of which there are none
    return Devices(
        count=sum(number * len(usable[key]) for key, number in nodes.items()),
        kind="gpu" if any(item.kind == "gpu" for item in hardware.values()) else "cpu",
        memory_bytes=memory_bytes,
        islands=dict(islands),
        products=products,
    )


def narrowed(devices: Devices, topology: Topology, layout: Layout) -> Devices:
    """Narrow down to what the devices that a layout uses have in common.

    A small device that no rank sits on must not make a job too large.
    """
    hardware = {node.name: node.hardware for node in topology.nodes}
    used = Counter((id(hardware[slot.node]), slot.gpu) for slot in layout.slots)
    known = {
        (id(item), device.index): device for item in hardware.values() for device in item.devices
    }
    memory_bytes, products = _in_common((known[place], number) for place, number in used.items())
    return replace(devices, memory_bytes=memory_bytes, products=products)


def _in_common(devices: Iterable[tuple[Device, int]]) -> tuple[int | None, tuple[str, ...]]:
    """Memory of the smallest device, None if one is unknown; and products by number of devices."""
    products: Counter[str] = Counter()
    memories: list[int | None] = []
    for device, number in devices:
        memories.append(device.memory_bytes)
        if device.product is not None:
            products[device.product] += number
    known = [memory for memory in memories if memory is not None]
    complete = known and len(known) == len(memories)
    return min(known) if complete else None, tuple(name for name, _ in products.most_common())


def explain_faults(topology: Topology) -> str | None:
    """How many devices are not counted, and the first fault of each; None: all are counted."""
    devices = (device for node in topology.nodes for device in node.hardware.devices)
    faults = Counter(device.faults[0] for device in devices if device.faults)
    if not faults:
        return None
    most = dict(faults.most_common(MOST_FAULTS))
    if len(faults) > len(most):
        most["others"] = faults.total() - sum(most.values())
    told = [f"{fault} ({number:,})" for fault, number in most.items()]
    return f"not counted for a fault: {', '.join(told)}"


def _without_faults(hardware: Hardware) -> list[int]:
    return [position for position, device in enumerate(hardware.devices) if not device.faults]


def _island_sizes(hardware: Hardware, usable: list[int]) -> list[int]:
    """Sizes of the full NVLink meshes of a node; the whole node where there is none."""
    meshes = [len(set(members) & set(usable)) for members, _ in hardware.nvlink_cliques]
    meshes = [size for size in meshes if size > 1]
    if not meshes or sum(meshes) > len(usable):  # none, or meshes that overlap
        return [len(usable)]
    return meshes + [1] * (len(usable) - sum(meshes))
