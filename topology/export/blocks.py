"""The fabric as what schedulers know: racks that are one NVLink domain, and a tree of switches.

A tier in which every value holds one node (a host name) is no switch and left out. A value that
occurs under several parents is a different switch under each, so names are made unique.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from parctl.topology.describe import UNKNOWN
from parctl.topology.model import Node, Topology

ROOT = "cluster"


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """A leaf has nodes, any other switch has switches."""

    name: str
    nodes: tuple[str, ...]
    switches: tuple[str, ...]


def racks(topology: Topology) -> dict[str, list[Node]]:
    """NVLink domains that span nodes."""
    members: dict[str, list[Node]] = {}
    for node in topology.nodes:
        if node.domain is not None:
            members.setdefault(node.domain, []).append(node)
    return {name: nodes for name, nodes in members.items() if len(nodes) > 1}


def useful_tiers(topology: Topology) -> list[int]:
    """Positions of the tiers that group nodes, nearest first."""
    return [
        position
        for position in range(len(topology.tiers))
        if len({node.tiers[position] for node in topology.nodes}) < len(topology.nodes)
        or len(topology.nodes) == 1
    ]


def switches(topology: Topology) -> list[Switch]:
    """The tree of switches, leaves first; one flat switch where no tier is known."""
    names = Names({node.name for node in topology.nodes})
    return list(_below(topology, list(topology.nodes), useful_tiers(topology), ROOT, names))


def _below(
    topology: Topology, nodes: list[Node], tiers: list[int], name: str, names: "Names"
) -> Iterator[Switch]:
    if not tiers:
        yield Switch(name=name, nodes=tuple(node.name for node in nodes), switches=())
        return
    groups: dict[str, list[Node]] = {}
    for node in nodes:
        groups.setdefault(node.tiers[tiers[-1]], []).append(node)
    if name == ROOT and len(groups) == 1:
        # one value for all is the root itself
        value = next(iter(groups))
        root = names.unique("unknown" if value == UNKNOWN else value, parent=topology.name)
        yield from _below(topology, nodes, tiers[:-1], root, names)
        return
    children = []
    for value, members in groups.items():
        child = names.unique("unknown" if value == UNKNOWN else value, parent=name)
        children.append(child)
        yield from _below(topology, members, tiers[:-1], child, names)
    yield Switch(name=name, nodes=(), switches=tuple(children))


class Names:
    """Names made of letters, digits, dots, dashes and underscores, each given out once."""

    def __init__(self, taken: set[str]) -> None:
        self.taken = {ROOT, *taken}

    def unique(self, wanted: str, *, parent: str) -> str:
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", wanted).strip("-") or "switch"
        name = plain
        if name in self.taken:
            name = plain = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{parent}-{plain}")
        number = 2
        while name in self.taken:
            name = f"{plain}-{number}"
            number += 1
        self.taken.add(name)
        return name


def hostlist(names: Sequence[str]) -> str:
    """Write names as Slurm reads them; zeros in front are kept.

    >>> hostlist(["node-0", "node-1", "node-2", "a08", "a09", "a10", "login"])
    'node-[0-2],a[08-10],login'
    """
    groups: dict[tuple[str, int], list[int]] = {}
    for name in names:
        match = re.fullmatch(r"(.*?)(\d{1,15})", name)
        if match is None:
            groups[(name, -1)] = []
            continue
        prefix, digits = match.groups()
        # a10 after a08, a09 belongs to their range; otherwise unpadded numbers have width 0
        padded = digits.startswith("0") and len(digits) > 1
        width = len(digits) if padded or (prefix, len(digits)) in groups else 0
        groups.setdefault((prefix, width), []).append(int(digits))
    return ",".join(_range_text(prefix, width, n) for (prefix, width), n in groups.items())


def _range_text(prefix: str, width: int, numbers: Sequence[int]) -> str:
    if width == -1:
        return prefix
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = [
        str(run[0]).zfill(width)
        if len(run) == 1
        else f"{str(run[0]).zfill(width)}-{str(run[-1]).zfill(width)}"
        for run in runs
    ]
    text = ",".join(parts)
    return f"{prefix}{text}" if len(numbers) == 1 else f"{prefix}[{text}]"
