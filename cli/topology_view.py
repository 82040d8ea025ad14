"""How a topology looks in a terminal: a table of equal nodes, or a tree from cluster to device."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from parctl.topology.check.questions import Check, TpAnswer
from parctl.topology.describe import (
    devices_text,
    hardware_cells,
    headline,
    links_text,
    memory_text,
    name_range,
    nics_text,
    nodes_alike,
    numa_text,
)
from parctl.topology.model import Hardware, Node, Topology
from parctl.topology.products import find_product

if TYPE_CHECKING:
    from rich.console import Console
    from rich.tree import Tree


def show_table(topology: Topology, console: "Console") -> None:
    """Print one row per kind of node, then domains, tiers and what nobody told us."""
    from rich.table import Table

    console.print(headline(topology), markup=False)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
    for column in ("NODES", "DEVICES", "MEMORY", "LINKS", "NUMA", "NICS", "SOURCE"):
        table.add_column(column, overflow="fold")
    for hardware, nodes in nodes_alike(topology.nodes):
        table.add_row(
            name_range([node.name for node in nodes]),
            *hardware_cells(hardware),
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


def show_check(topology: Topology, check: Check, console: "Console") -> None:
    """Print which TP sizes stay on full NVLink, and what is wrong."""
    from rich.table import Table

    console.print(headline(topology), markup=False)
    console.print()
    if check.tp:
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
        for column in ("TP", "FULL NVLINK", "GROUPS", "WHERE, OR WHY NOT"):
            table.add_column(column, overflow="fold")
        for sizes, answer in _alike(check.tp):
            groups = f"{answer.num_groups:,}" if answer.places else "-"
            table.add_row(sizes, answer.answer, groups, answer.explanation)
        console.print(table)
    elif topology.num_devices:
        console.print("no two GPUs of one node or NVLink domain: every tp group has one GPU")
    else:
        console.print("no device is known, so nothing can be said about tp groups")
    console.print()
    for finding in check.findings:
        console.print(f"{'fault' if finding.fault else 'note'}: {finding}", markup=False)
    for fact in topology.unknown:
        console.print(f"unknown: {fact}", markup=False)
    if check.ok:
        console.print("no fault found")


def _alike(answers: Sequence[TpAnswer]) -> Iterator[tuple[str, TpAnswer]]:
    """Join sizes in a row that have the same answer: `5-8 no`."""

    def key(answer: TpAnswer) -> tuple[str, int, str]:
        return answer.answer, answer.num_groups, answer.explanation

    for _, alike in groupby(answers, key=key):
        members = list(alike)
        first, last = members[0].size, members[-1].size
        yield (str(first) if first == last else f"{first}-{last}"), members[0]


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
    for hardware, nodes in nodes_alike(topology.nodes):
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
        for hardware, alike in nodes_alike(members):
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
