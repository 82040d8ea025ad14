"""Several descriptions of one cluster, made into one.

Nodes are joined by name, devices by UUID, else PCI address, else index. Each fact is taken from the
best source that states it (`RANKS`); where two sources state different things, the better one wins
and the difference is a warning. A table of products only fills gaps: it is no witness.

::

    kubernetes   node-7  8 GPUs  domain D  rack r1          links ?
    smi          node-7  8 GPUs                             links NV18  NICs  NUMA
    merged       node-7  8 GPUs  domain D  rack r1          links NV18  NICs  NUMA
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from parctl.topology.merge_hardware import merge_hardware
from parctl.topology.model import Hardware, Node, Topology
from parctl.topology.names import few
from parctl.topology.placement.order import in_natural_order
from parctl.topology.precedence import fact_rank
from parctl.topology.unknown import still_unknown


@dataclass(slots=True)
class _Notes:
    """Sentences, each with the nodes it holds for: said once however many nodes there are."""

    nodes_of: dict[str, list[str]] = field(default_factory=dict)

    def add(self, sentences: Iterable[str], node: str) -> None:
        for sentence in sentences:
            self.nodes_of.setdefault(sentence, []).append(node)

    def text(self) -> list[str]:
        return [f"{few(nodes)}: {sentence}" for sentence, nodes in self.nodes_of.items()]


def merge(topologies: Sequence[Topology]) -> Topology:
    """Join topologies of one cluster. Equal facts of equal sources prefer the earlier one."""
    if len(topologies) == 1:
        return topologies[0]
    notes = _Notes()
    tiers, tier_note = _choose_tiers(topologies)
    by_name: dict[str, list[tuple[Topology, Node]]] = {}
    for topology, node, name in _named(topologies):
        by_name.setdefault(name, []).append((topology, node))
    combine = _shared_merge()
    nodes = []
    for name, found in by_name.items():
        hardware, sentences = combine([node.hardware for _, node in found])
        notes.add(sentences, name)
        domain, domain_source, conflict = _choose_domain([node for _, node in found])
        notes.add(conflict, name)
        values = next((n.tiers for topology, n in found if topology is tiers), None)
        sources = {
            key: source for _, node in reversed(found) for key, source in node.sources.items()
        }
        if domain_source:
            sources["domain"] = domain_source
        if tiers is not None:
            sources["tiers"] = _tier_source(tiers)
        nodes.append(
            Node(
                name=name,
                hardware=hardware,
                domain=domain,
                tiers=values or ("?",) * (len(tiers.tiers) if tiers else 0),
                sources=sources,
            )
        )
    nodes, left_out = _with_devices(nodes, topologies)
    first = [node.name for node in topologies[0].nodes]
    ordered = nodes if first == [node.name for node in nodes] else in_natural_order(nodes)
    merged = Topology(
        name=topologies[0].name,
        source=" + ".join(topology.source for topology in topologies),
        tiers=tiers.tiers if tiers else (),
        nodes=tuple(ordered),
        warnings=(
            *dict.fromkeys(w for topology in topologies for w in topology.warnings),
            *notes.text(),
            *tier_note,
            *left_out,
        ),
    )
    said = dict.fromkeys(u for topology in topologies for u in topology.unknown)
    return replace(merged, unknown=still_unknown(merged, list(said)))


def _named(topologies: Sequence[Topology]) -> Iterable[tuple[Topology, Node, str]]:
    """Every node with the name it is joined by: `n1.site.org` is `n1` where only one is so."""
    full = {node.name for topology in topologies for node in topology.nodes}
    short: dict[str, set[str]] = {}
    for name in full:
        short.setdefault(name.partition(".")[0], set()).add(name)
    for topology in topologies:
        for node in topology.nodes:
            stem = node.name.partition(".")[0]
            alike = short[stem]
            # an address such as 10.0.0.7 has no short form
            joined = stem in alike and len(alike) == 2 and not stem.isdecimal()
            yield topology, node, stem if joined else node.name


def _shared_merge() -> Callable[[Sequence[Hardware]], tuple[Hardware, tuple[str, ...]]]:
    """Merge hardware, once for every combination of values that nodes share."""
    known: dict[tuple[int, ...], tuple[Hardware, tuple[str, ...]]] = {}

    def combine(parts: Sequence[Hardware]) -> tuple[Hardware, tuple[str, ...]]:
        key = tuple(id(part) for part in parts)
        if key not in known:
            known[key] = merge_hardware(parts)
        return known[key]

    return combine


def _choose_domain(nodes: Sequence[Node]) -> tuple[str | None, str | None, list[str]]:
    stated = [
        (fact_rank("domain", node.sources.get("domain")), node)
        for node in nodes
        if node.domain is not None
    ]
    if not stated:
        return None, None, []
    stated.sort(key=lambda pair: pair[0])
    best = stated[0][1]
    source = best.sources.get("domain", "file")
    conflict = [
        f"NVLink domain {best.domain} ({source}), but {node.domain} "
        f"({node.sources.get('domain', 'file')}): the first is used"
        for _, node in stated[1:]
        if node.domain != best.domain
    ]
    return best.domain, source, conflict[:1]


def _tier_source(topology: Topology) -> str:
    sources = (node.sources.get("tiers") for node in topology.nodes)
    return next((source for source in sources if source), "file")


def _choose_tiers(topologies: Sequence[Topology]) -> tuple[Topology | None, list[str]]:
    """One source names the fabric: trees seen by different eyes do not mix."""
    stated = [topology for topology in topologies if topology.tiers and topology.nodes]
    if not stated:
        return None, []
    ordered = sorted(stated, key=lambda t: fact_rank("tiers", _tier_source(t)))
    best, *others = ordered
    notes = [
        f"fabric tiers of {other.source} ({', '.join(other.tiers)}) are not used: those of "
        f"{best.source} are better known"
        for other in others
        if other.tiers != best.tiers
    ]
    return best, notes


def _with_devices(
    nodes: list[Node], topologies: Sequence[Topology]
) -> tuple[list[Node], list[str]]:
    """Drop nodes that only a map of the fabric names, once another source lists devices."""
    listed = {
        node.name.partition(".")[0]
        for topology in topologies
        if any(node.hardware.devices for node in topology.nodes)
        for node in topology.nodes
    }
    if not listed:
        return nodes, []
    kept = [
        node for node in nodes if node.hardware.devices or node.name.partition(".")[0] in listed
    ]
    stay = {node.name for node in kept}
    gone = [node.name for node in nodes if node.name not in stay]
    return kept, ([f"left out, since no source lists their devices: {few(gone)}"] if gone else [])
