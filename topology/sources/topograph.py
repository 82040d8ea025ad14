"""topograph's view of a cluster: its models (YAML) and its graph (JSON).

A model has `switches` over switches and `blocks`, each a leaf switch over nodes; the annotations of
a block name its NVLink domain. The graph engine lists instances with the switches above each,
nearest first. What topograph writes for Slurm or as labels of Kubernetes nodes is read there.
"""

import re
from collections.abc import Mapping
from typing import Any

from parctl.errors import UsageError
from parctl.topology.document import mapping, mappings, read_documents, text_of
from parctl.topology.hostlist import expand_hostlist
from parctl.topology.model import Topology
from parctl.topology.sources.fabric import Tree, fabric_topology

SOURCE = "topograph"
# annotations and labels that name the NVLink domain; the first is what topograph writes by default
DOMAIN_KEYS = ("accelerator.topograph.run/domain", "accelerator.topology.test/domain")

_GRAPH = re.compile(r'"?network_layers"?\s*:')
_MODEL_BLOCKS = re.compile(r'(?m)^\s*[{,]?\s*"?blocks"?\s*:')
_MODEL_SWITCHES = re.compile(r'(?m)^\s*[{,]?\s*"?switches"?\s*:')


def looks_like(text: str) -> bool:
    """Whether the text is a model or a graph of topograph."""
    if _GRAPH.search(text):
        return '"instances"' in text or "instances:" in text
    has_leaves = re.search(r'(?m)^\s*-?\s*"?switch"?\s*:', text) is not None
    is_slurm = re.search(r"(?m)^\s*-\s*topology\s*:", text) is not None
    return (
        bool(_MODEL_BLOCKS.search(text))
        and not is_slurm
        and (has_leaves or bool(_MODEL_SWITCHES.search(text)))
    )


def read_text(text: str, name: str) -> Topology:
    """Read a model or a graph. Raises UsageError when it names no node."""
    documents = read_documents(text, name)
    tree = Tree()
    paths: dict[str, tuple[str, ...]] = {}
    for value in documents.values:
        root = mapping(value)
        for instance in mappings(root.get("instances")):
            node = text_of(instance.get("id"))
            if node is not None:
                layers = instance.get("network_layers")
                found = [text_of(layer) for layer in layers] if isinstance(layers, list) else []
                paths[node] = tuple(layer or "?" for layer in found)
                _add_domain(tree, node, mapping(instance, "labels"))
        _add_model(tree, root, name)
    depth = max(map(len, paths.values()), default=0)
    if depth:
        tree.tier_names = tuple(f"switch-tier-{i}" for i in range(depth))
    for node, path in paths.items():
        tree.place(node, path, domain=None, where=name)
    if not (tree.leaf or tree.places):
        raise UsageError(f"{name}: looks like topograph's, but names no node")
    unknown = [documents.cut] if documents.cut else []
    return fabric_topology(tree, name=name, source=SOURCE, unknown=unknown)


def _add_model(tree: Tree, root: Mapping[str, Any], name: str) -> None:
    for switch, inside in mapping(root, "switches").items():
        children = mapping(inside).get("switches")
        names = [text_of(child) for child in children] if isinstance(children, list) else []
        known = [child for child in names if child is not None]
        tree.add(str(switch), nodes=(), children=known, where=name)
    for number, block in enumerate(mappings(root.get("blocks"))):
        where = f"{name} blocks[{number}]"
        leaf = text_of(block.get("switch"))
        listed = block.get("nodes")
        nodes = [
            node
            for entry in (listed if isinstance(listed, list) else [])
            if (words := text_of(entry)) is not None
            for node in expand_hostlist(words, where)
        ]
        if leaf is None:
            raise UsageError(f"{where}: `switch` is missing, expected the name of a leaf switch")
        tree.add(leaf, nodes=nodes, children=(), where=where)
        marks = {**mapping(block, "labels"), **mapping(block, "annotations")}
        for node in nodes:
            _add_domain(tree, node, marks)


def _add_domain(tree: Tree, node: str, marks: Mapping[str, Any]) -> None:
    for key in DOMAIN_KEYS:
        domain = text_of(marks.get(key))
        if domain is not None:
            tree.domains.setdefault(node, domain)
            return
