"""How a topology looks in a terminal: a table of equal nodes, or a tree from cluster to device."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from parctl.topology.model import Device, Hardware, Node, Topology
from parctl.topology.products import find_product

if TYPE_CHECKING:
    from rich.console import Console
    from rich.tree import Tree

UNKNOWN = "?"


def show_table(topology: Topology, console: "Console") -> None:
    """Print one row per kind of node, then domains, tiers and what nobody told us."""
    from rich.table import Table

    console.print(headline(topology), markup=False)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
    for column in ("NODES", "DEVICES", "MEMORY", "LINKS", "NUMA", "NICS", "SOURCE"):
        table.add_column(column, overflow="fold")
    for hardware, nodes in _by_hardware(topology.nodes):
        table.add_row(
            name_range([node.name for node in nodes]),
            devices_text(hardware.devices),
            memory_text(hardware.devices),
            links_text(hardware),
            numa_text(hardware.devices),
            nics_text(hardware),
            sources_text(hardware),
        )
    console.print()
    console.print(table)
    console.print()
    for line in remarks(topology):
        console.print(line, markup=False)


def show_tree(topology: Topology, console: "Console") -> None:
    """Print the cluster as a tree; equal neighbours are one branch."""
    from rich.text import Text
    from rich.tree import Tree

    root = Tree(Text(headline(topology)))
    _add_tiers(root, topology, list(topology.nodes), len(topology.tiers))
    console.print(root)
    for line in remarks(topology):
        console.print(line, markup=False)


def headline(topology: Topology) -> str:
    """`h100:16x8: 16 nodes, 128 GPUs (synthetic h100:16x8)`."""
    nodes, devices = len(topology.nodes), topology.num_devices
    gpu = any(node.hardware.kind == "gpu" for node in topology.nodes)
    noun = "GPU" if gpu else "CPU device"
    return (
        f"{topology.name}: {nodes:,} node{'s' * (nodes != 1)}, "
        f"{devices:,} {noun}{'s' * (devices != 1)} ({topology.source})"
    )


def remarks(topology: Topology) -> Iterator[str]:
    """Domains, tiers, faults, and what is unknown."""
    sizes: dict[str, int] = {}
    for node in topology.nodes:
        if node.domain is not None:
            sizes[node.domain] = sizes.get(node.domain, 0) + len(node.hardware.devices)
    for size, names in groupby(sorted(sizes, key=lambda name: sizes[name]), key=sizes.__getitem__):
        yield f"NVLink domains of {size} GPUs: {name_range(list(names))}"
    if topology.tiers:
        yield f"fabric tiers, nearest first: {', '.join(topology.tiers)}"
    for hardware, nodes in _by_hardware(topology.nodes):
        connected = [group for group in hardware.nvlink_groups if len(group) > 1]
        if len(connected) < len(hardware.nvlink_cliques):
            yield (
                f"NVLink connects all GPUs of {name_range([node.name for node in nodes])}, but "
                f"only these are joined each with each: {links_text(hardware)}"
            )
    for node in topology.nodes:
        for device in node.hardware.devices:
            for fault in device.faults:
                yield f"fault: {node.name} gpu {device.index}: {fault}"
    for fact in topology.unknown:
        yield f"unknown: {fact}"


def name_range(names: Sequence[str]) -> str:
    """Abbreviate a list of names.

    >>> name_range(["node-0", "node-1", "node-2"]), name_range(["a"])
    ('node-0 .. node-2 (3)', 'a')
    """
    return names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]} ({len(names):,})"


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


def devices_text(devices: Sequence[Device]) -> str:
    """`8 x h100`."""
    names = [device.product or UNKNOWN for device in devices]
    return " + ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))


def memory_text(devices: Sequence[Device]) -> str:
    """Memory of one device, in units of 10^9 bytes."""
    sizes = {device.memory_bytes for device in devices}
    return " or ".join(sorted(UNKNOWN if s is None else f"{s / 1e9:.1f} GB" for s in sizes))


def links_text(hardware: Hardware) -> str:
    """What joins the devices: each full mesh with its links, and what is outside of them."""
    if hardware.kind == "cpu":
        return "shared memory"
    index = [device.index for device in hardware.devices]
    parts = []
    for members, least in hardware.nvlink_cliques:
        code = hardware.matrix[members[0]][members[1]]
        name = "xGMI" if code == "XGMI" else f"NV{least}"
        parts.append(f"{{{numbers_text(index[i] for i in members)}}} {name}")
    meshed = {i for members, _ in hardware.nvlink_cliques for i in members}
    alone = [i for i in range(len(index)) if i not in meshed]
    if alone and len(index) > 1:
        codes = {hardware.matrix[i][j] for i in alone for j in range(len(index)) if i != j}
        unknown = UNKNOWN in codes
        parts.append(
            f"{{{numbers_text(index[i] for i in alone)}}} {'unknown' if unknown else 'PCIe'}"
        )
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
    sources = list(hardware.devices[0].sources.values()) if hardware.devices else []
    return ", ".join(dict.fromkeys([*sources, *hardware.sources.values()])) or UNKNOWN


def _by_hardware(nodes: Sequence[Node]) -> list[tuple[Hardware, list[Node]]]:
    """Nodes by what looks alike in the table, in order of first appearance."""
    groups: dict[tuple[str, ...], tuple[Hardware, list[Node]]] = {}
    looks: dict[int, tuple[str, ...]] = {}
    for node in nodes:
        hardware = node.hardware
        if id(hardware) not in looks:
            looks[id(hardware)] = (
                devices_text(hardware.devices),
                memory_text(hardware.devices),
                links_text(hardware),
                numa_text(hardware.devices),
                nics_text(hardware),
                sources_text(hardware),
            )
        groups.setdefault(looks[id(hardware)], (hardware, []))[1].append(node)
    return list(groups.values())


def _add_tiers(tree: "Tree", topology: Topology, nodes: list[Node], depth: int) -> None:
    """Add the branches of one tier, the farthest first, then NVLink domains, then nodes."""
    from rich.text import Text

    if depth > 0:
        groups: dict[str, list[Node]] = {}
        for node in nodes:
            groups.setdefault(node.tiers[depth - 1], []).append(node)
        for value, members in groups.items():
            branch = tree.add(Text(f"{topology.tiers[depth - 1]} {value}"))
            _add_tiers(branch, topology, members, depth - 1)
        return
    domains: dict[str | None, list[Node]] = {}
    for node in nodes:
        domains.setdefault(node.domain, []).append(node)
    for domain, members in domains.items():
        branch = tree if domain is None else tree.add(Text(f"NVLink domain {domain}"))
        for hardware, alike in _by_hardware(members):
            _add_node(branch, hardware, alike)


def _add_node(tree: "Tree", hardware: Hardware, nodes: Sequence[Node]) -> None:
    from rich.text import Text

    branch = tree.add(Text(name_range([node.name for node in nodes])))
    branch.add(Text(f"{devices_text(hardware.devices)}, {memory_text(hardware.devices)} each"))
    branch.add(Text(f"links: {links_text(hardware)}{_rate_text(hardware)}"))
    branch.add(Text(f"NUMA: {numa_text(hardware.devices)}"))
    branch.add(Text(f"NICs: {nics_text(hardware)}"))
    if len(hardware.devices) <= 16 and hardware.kind == "gpu":
        matrix = branch.add(Text("link matrix"))
        for device, row in zip(hardware.devices, hardware.matrix, strict=True):
            matrix.add(Text(f"gpu {device.index:<2} " + " ".join(f"{code:<4}" for code in row)))


def _rate_text(hardware: Hardware) -> str:
    product = find_product(hardware.devices[0].product or "") if hardware.devices else None
    if not hardware.nvlink_cliques or product is None or product.link_gb_s is None:
        return ""
    return f", {product.link_gb_s:g} GB/s one way per link"
