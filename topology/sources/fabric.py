"""A tree of switches over nodes, turned into fabric tiers.

::

        core                     tier 2 (farthest)
       /    \\
     sw21   sw22                 tier 1
     /  \\      \\
   leaf1 leaf2  leaf3            tier 0 (nearest): the switch that a node hangs on
    |      |      |
    n1     n2     n3             n1: ("leaf1", "sw21", "core")

Tiers are counted from the node up. Where a node hangs on fewer switches than another, its far
tiers are unknown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from parctl.errors import UsageError
from parctl.topology.model import Node, Topology
from parctl.topology.names import few
from parctl.topology.placement.order import natural_key
from parctl.topology.sources.plain import gpu_hardware

MAX_TIERS = 16


@dataclass(slots=True)
class Tree:
    """Switches as they are read, or places that are already known."""

    tier_names: tuple[str, ...] = ()  # empty: `switch-tier-N`
    parent: dict[str, str] = field(default_factory=dict)  # of a switch
    leaf: dict[str, str] = field(default_factory=dict)  # switch of a node
    places: dict[str, tuple[str, ...]] = field(default_factory=dict)  # of nodes placed directly
    domains: dict[str, str] = field(default_factory=dict)  # of a node
    twice: list[str] = field(default_factory=list)  # nodes or switches with two parents

    def add(
        self, switch: str, *, nodes: Sequence[str], children: Sequence[str], where: str
    ) -> None:
        """Hang nodes and switches on a switch."""
        for table, names in ((self.leaf, nodes), (self.parent, children)):
            for name in names:
                if table.setdefault(name, switch) != switch:
                    self.twice.append(name)
        if switch in children:
            raise UsageError(f"{where}: switch `{switch}` hangs on itself")

    def place(self, node: str, tiers: tuple[str, ...], *, domain: str | None, where: str) -> None:
        """Put a node where it is said to be, nearest tier first."""
        if self.places.setdefault(node, tiers) != tiers:
            self.twice.append(node)
        if domain is not None:
            self.domains.setdefault(node, domain)

    def path(self, node: str) -> tuple[str, ...]:
        """The switches above a node, nearest first."""
        found: list[str] = []
        switch: str | None = self.leaf.get(node)
        while switch is not None:
            if switch in found or len(found) == MAX_TIERS:
                raise UsageError(
                    f"switch `{switch}` hangs on itself, or under more than {MAX_TIERS} others"
                )
            found.append(switch)
            switch = self.parent.get(switch)
        return tuple(found)


def fabric_topology(
    tree: Tree,
    *,
    name: str,
    source: str,
    domain_source: str | None = None,
    warnings: Sequence[str] = (),
    unknown: Sequence[str] = (),
) -> Topology:
    """Nodes with their places and without devices, to be merged with who knows those."""
    paths = dict(tree.places)
    for node in tree.leaf:
        paths[node] = tree.path(node)
    depth = max(map(len, paths.values()), default=0)
    names = tree.tier_names or tuple(f"switch-tier-{i}" for i in range(depth))
    hardware = gpu_hardware((), source=source)
    nodes = tuple(
        Node(
            name=node,
            hardware=hardware,
            domain=tree.domains.get(node),
            tiers=paths[node] + ("?",) * (len(names) - len(paths[node])),
            sources=_sources(tree, node, source, domain_source or source),
        )
        for node in sorted(paths, key=natural_key)
    )
    notes = list(warnings)
    if tree.twice:
        notes.append(
            f"{few(list(dict.fromkeys(tree.twice)))}: hangs on several switches; "
            "the first one named is used"
        )
    missing = list(unknown)
    if not nodes and not any(text.startswith("nodes:") for text in missing):
        missing.append("nodes: the text names none")
    if nodes:
        missing.append(f"devices of all {len(nodes)} nodes: {name} describes the network only")
    short = [node.name for node in nodes if "?" in node.tiers]
    if short:
        missing.append(f"fabric tiers of {few(short)}: fewer switches above them")
    return Topology(
        name=name,
        source=f"{source} {name}",
        tiers=names,
        nodes=nodes,
        warnings=tuple(notes),
        unknown=tuple(missing),
    )


def _sources(tree: Tree, node: str, source: str, domain_source: str) -> Mapping[str, str]:
    known = {"tiers": source}
    if node in tree.domains:
        known["domain"] = domain_source
    return known
