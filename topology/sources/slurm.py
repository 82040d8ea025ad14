"""Slurm's map of the network: `topology.conf`, or `topology.yaml`, which beats it since 25.05.

A tree names switches, each over nodes or over other switches; tiers are counted from the node up,
so a leaf switch is tier 0 wherever it hangs. Blocks are the nearest tier, and every larger block
size that Slurm plans with is a tier of neighbouring blocks. Slurm says nothing about devices.

topograph writes the NVLink domain of a block as a comment above it: `# block001=nvl-1-1`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from parctl.errors import UsageError
from parctl.topology.document import mapping, mappings, read_documents, text_of, whole_number
from parctl.topology.hostlist import expand_hostlist
from parctl.topology.model import Topology
from parctl.topology.sources.fabric import Tree, fabric_topology

SOURCE = "slurm"

_CONF_LINE = re.compile(r"(?im)^\s*(?:SwitchName|BlockName|BlockSizes)\s*=")
_YAML_LINE = re.compile(r"(?m)^\s*-\s*topology\s*:")
_KEY = re.compile(r"(\w+)\s*=\s*([^\s#]+)")
_COMMENT = re.compile(r"#\s*([^\s=]+)=(\S+)\s*$")


@dataclass(slots=True)
class _Blocks:
    nodes_of: dict[str, list[str]] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)
    domains: dict[str, str] = field(default_factory=dict)  # by block


def looks_like(text: str) -> bool:
    """Whether the text is Slurm's, in either form."""
    return bool(
        _CONF_LINE.search(text)
        or (_YAML_LINE.search(text) and re.search(r"(?m)^\s*(?:tree|block|flat)\s*:", text))
    )


def read_text(text: str, name: str) -> Topology:
    """Read either form. Raises UsageError with the line."""
    if _CONF_LINE.search(text):
        return _read_conf(text, name)
    return _read_yaml(text, name)


def _read_conf(text: str, name: str) -> Topology:
    tree, blocks = Tree(), _Blocks()
    notes: dict[str, str] = {}
    for number, line in _logical_lines(text):
        where = f"{name}:{number}"
        comment = _COMMENT.match(line.strip())
        if comment:
            notes[comment[1]] = comment[2]
            continue
        words = {key.lower(): value for key, value in _KEY.findall(line.partition("#")[0])}
        if "switchname" in words:
            nodes = expand_hostlist(words.get("nodes", ""), where)
            children = expand_hostlist(words.get("switches", ""), where)
            if children and "level" in words:
                nodes = []  # `scontrol show topology` lists those below the other switches again
            for switch in expand_hostlist(words["switchname"], where):
                tree.add(switch, nodes=nodes, children=children, where=where)
        elif "blockname" in words:
            block = words["blockname"]
            blocks.nodes_of.setdefault(block, []).extend(
                expand_hostlist(words.get("nodes", ""), where)
            )
        elif "blocksizes" in words:
            blocks.sizes = _sizes(words["blocksizes"].split(","))
        elif words or line.partition("#")[0].strip():
            raise UsageError(
                f"{where}: found `{line.strip()[:60]}`, expected SwitchName=, BlockName= or "
                "BlockSizes=",
                hint="is this Slurm's topology.conf?",
            )
    blocks.domains = {block: notes[block] for block in blocks.nodes_of if block in notes}
    if blocks.nodes_of:
        return _block_topology(blocks, name)
    return fabric_topology(tree, name=name, source=SOURCE)


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines with their numbers; a backslash at the end joins the next line."""
    held, start = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.rstrip().endswith("\\"):
            held, start = held + line.rstrip()[:-1] + " ", start or number
            continue
        if (held + line).strip():
            yield start or number, held + line
        held, start = "", 0
    if held.strip():
        yield start, held


def _read_yaml(text: str, name: str) -> Topology:
    documents = read_documents(text, name)
    entries = [entry for value in documents.values for entry in mappings(value)]
    entry = next((e for e in entries if e.get("cluster_default") is True), None)
    entry = entry or next(iter(entries), {})
    chosen = text_of(entry.get("topology")) or "unnamed"
    unknown = [documents.cut] if documents.cut else []
    warnings = []
    if len(entries) > 1:
        others = [text_of(e.get("topology")) or "unnamed" for e in entries if e is not entry]
        warnings.append(
            f"{name} holds {len(entries)} topologies: `{chosen}` is read, the cluster's default; "
            f"not read: {', '.join(others[:5])}"
        )
    where = f"{name}: topology `{chosen}`"
    tree, blocks = Tree(), _Blocks()
    if "tree" in entry:
        for switch in mappings(mapping(entry, "tree").get("switches")):
            nodes = expand_hostlist(_hosts(switch.get("nodes")), where)
            children = expand_hostlist(_hosts(switch.get("children")), where)
            named = text_of(switch.get("switch"))
            if named is None:
                raise UsageError(f"{where}: a switch without a name")
            tree.add(named, nodes=nodes, children=children, where=where)
    elif "block" in entry:
        inside = mapping(entry, "block")
        for block in mappings(inside.get("blocks")):
            named = text_of(block.get("block"))
            if named is None:
                raise UsageError(f"{where}: a block without a name")
            blocks.nodes_of.setdefault(named, []).extend(
                expand_hostlist(_hosts(block.get("nodes")), where)
            )
        blocks.sizes = _sizes(inside.get("block_sizes"))
    elif "flat" not in entry:
        raise UsageError(
            f"{where}: found {', '.join(map(str, list(entry)[:5])) or 'nothing'}, expected `tree`, "
            "`block` or `flat`"
        )
    else:
        unknown.append("nodes: a flat topology does not name them")
    if blocks.nodes_of:
        return _block_topology(blocks, name, warnings=warnings, unknown=unknown)
    return fabric_topology(tree, name=name, source=SOURCE, warnings=warnings, unknown=unknown)


def _hosts(value: Any) -> str:
    """A host list as text; YAML may also have a list of them, or a bare number."""
    parts = value if isinstance(value, list) else [value]
    return ",".join(text for part in parts if (text := text_of(part)) is not None)


def _sizes(values: Any) -> list[int]:
    numbers = [whole_number(value, most=10**7) for value in values] if values else []
    return [number for number in numbers if number]


def _block_topology(
    blocks: _Blocks,
    name: str,
    *,
    warnings: Sequence[str] = (),
    unknown: Sequence[str] = (),
) -> Topology:
    """Blocks as the nearest tier, and the sizes that Slurm joins them to as further tiers."""
    names = list(blocks.nodes_of)
    tiers: dict[str, Mapping[str, str]] = {"block": {block: block for block in names}}
    base = blocks.sizes[0] if blocks.sizes else 0
    for size in blocks.sizes[1:]:
        per = size // base
        if per > 1:
            tiers[f"block-of-{size}"] = {
                block: f"{names[position - position % per]}+{per - 1}"
                for position, block in enumerate(names)
            }
    tree = Tree(tier_names=tuple(tiers))
    for block, nodes in blocks.nodes_of.items():
        for node in nodes:
            values = tuple(of_block[block] for of_block in tiers.values())
            tree.place(node, values, domain=blocks.domains.get(block), where=name)
    return fabric_topology(
        tree,
        name=name,
        source=SOURCE,
        domain_source="topograph",
        warnings=warnings,
        unknown=unknown,
    )
