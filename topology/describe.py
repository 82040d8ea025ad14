"""Parts of a topology in a few words: what the table, the check and the picture all print.

Groups of devices are written `{0-3}`, by index; equal nodes are one range of names.
"""

import re
from collections.abc import Iterable, Sequence

from parctl.topology.model import Device, Hardware, Node, Topology

UNKNOWN = "?"


def headline(topology: Topology) -> str:
    """`h100:16x8: 16 nodes, 128 GPUs (synthetic h100:16x8)`."""
    nodes, devices = len(topology.nodes), topology.num_devices
    gpu = any(node.hardware.kind == "gpu" for node in topology.nodes)
    noun = "GPU" if gpu else "CPU device"
    counted = f"{devices:,} {noun}{'s' * (devices != 1)}" if devices else "devices unknown"
    return f"{topology.name}: {nodes:,} node{'s' * (nodes != 1)}, {counted} ({topology.source})"


def name_range(names: Sequence[str]) -> str:
    """Abbreviate a list of names; names that do not follow on from each other are counted.

    >>> name_range(["node-0", "node-1", "node-2"]), name_range(["a"])
    ('node-0 .. node-2 (3)', 'a')
    >>> name_range(["node-0", "node-7", "node-9"])
    'node-0, node-7 and 1 more'
    """
    if len(names) == 1:
        return names[0]
    if _consecutive(names):
        return f"{names[0]} .. {names[-1]} ({len(names):,})"
    if len(names) == 2:
        return f"{names[0]} and {names[1]}"
    return f"{names[0]}, {names[1]} and {len(names) - 2:,} more"


def numbers_text(numbers: Iterable[int]) -> str:
    """Write runs of numbers.

    >>> numbers_text([0, 1, 2, 3, 6])
    '0-3,6'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)


def gpus_text(indexes: Sequence[int]) -> str:
    """Name devices of one node.

    >>> gpus_text([2]), gpus_text([0, 1, 2])
    ('gpu 2', 'gpus 0-2')
    """
    return f"gpu{'s' * (len(indexes) != 1)} {numbers_text(indexes)}"


def group_text(indexes: Iterable[int]) -> str:
    return f"{{{numbers_text(indexes)}}}"


def devices_text(devices: Sequence[Device]) -> str:
    """`8 x h100`."""
    names = [device.product or UNKNOWN for device in devices]
    return " + ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or "-"


def memory_text(devices: Sequence[Device]) -> str:
    """Memory of one device, in units of 10^9 bytes."""
    sizes = {device.memory_bytes for device in devices}
    return " or ".join(sorted(UNKNOWN if s is None else f"{s / 1e9:.1f} GB" for s in sizes))


def link_text(hardware: Hardware, members: Sequence[int], least: int) -> str:
    """`NV18`, or `xGMI` for a mesh of AMD devices; `members` are positions."""
    return "xGMI" if hardware.matrix[members[0]][members[1]] == "XGMI" else f"NV{least}"


def links_text(hardware: Hardware) -> str:
    """What joins the devices: each full mesh with its links, and what is outside of them."""
    if hardware.kind == "cpu":
        return "shared memory"
    index = [device.index for device in hardware.devices]
    parts = [
        f"{group_text(index[i] for i in members)} {link_text(hardware, members, least)}"
        for members, least in hardware.nvlink_cliques
    ]
    meshed = {i for members, _ in hardware.nvlink_cliques for i in members}
    alone = [i for i in range(len(index)) if i not in meshed]
    if alone and len(index) > 1:
        codes = {hardware.matrix[i][j] for i in alone for j in range(len(index)) if i != j}
        unknown = UNKNOWN in codes
        parts.append(f"{group_text(index[i] for i in alone)} {'unknown' if unknown else 'PCIe'}")
    return " ".join(parts) or "-"


def numa_text(devices: Sequence[Device]) -> str:
    """`0: 0-3 | 1: 4-7`, device indexes by NUMA node."""
    groups: dict[int, list[int]] = {}
    for device in devices:
        if device.numa is not None:
            groups.setdefault(device.numa, []).append(device.index)
    return " | ".join(f"{numa}: {numbers_text(groups[numa])}" for numa in sorted(groups)) or UNKNOWN


def nics_text(hardware: Hardware) -> str:
    """`8 x 400 Gbit/s`."""
    if not hardware.nics:
        return UNKNOWN
    speeds = [nic.speed_gbit_s for nic in hardware.nics]
    return " + ".join(
        f"{speeds.count(speed)} x {UNKNOWN if speed is None else f'{speed:g}'} Gbit/s"
        for speed in dict.fromkeys(speeds)
    )


def sources_text(hardware: Hardware) -> str:
    """Where the facts of a node came from, each source once."""
    found = [source for device in hardware.devices for source in device.sources.values()]
    return ", ".join(dict.fromkeys([*found, *hardware.sources.values()])) or UNKNOWN


def hardware_cells(hardware: Hardware) -> tuple[str, ...]:
    """What a table says of a node: devices, memory, links, NUMA, NICs, sources."""
    return (
        devices_text(hardware.devices),
        memory_text(hardware.devices),
        links_text(hardware),
        numa_text(hardware.devices),
        nics_text(hardware),
        sources_text(hardware),
    )


def nodes_alike(nodes: Sequence[Node]) -> list[tuple[Hardware, list[Node]]]:
    """Nodes by what looks alike in a table, in order of first appearance."""
    groups: dict[tuple[str, ...], tuple[Hardware, list[Node]]] = {}
    looks: dict[int, tuple[str, ...]] = {}
    for node in nodes:
        hardware = node.hardware
        if id(hardware) not in looks:
            looks[id(hardware)] = hardware_cells(hardware)
        groups.setdefault(looks[id(hardware)], (hardware, []))[1].append(node)
    return list(groups.values())


def _consecutive(names: Sequence[str]) -> bool:
    """Whether names count up: one common beginning, then 0, 1, 2 ..."""
    matches = [re.fullmatch(r"(.*?)(\d{1,9})", name) for name in names]
    first = matches[0]
    return first is not None and all(
        match is not None and match[1] == first[1] and int(match[2]) == int(first[2]) + i
        for i, match in enumerate(matches)
    )
