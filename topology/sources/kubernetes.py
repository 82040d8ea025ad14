"""Kubernetes objects as a cluster: Nodes, ResourceSlices and Kueue's Topology, YAML or JSON.

What `kubectl get nodes,resourceslices,topologies.kueue.x-k8s.io -o json` prints, a file of objects,
or only the labels of one node. The same objects come live through `kubernetes_live`. Who is
believed, fact by fact::

    how many GPUs     status.allocatable > ResourceSlices > vendor's annotation > labels
    what they are     NodeTopology > ResourceSlices > vendor's annotation > labels
    NVLink domain     NodeTopology > labels, see `kubernetes_labels`
    fabric tiers      Kueue Topology > topograph > cloud labels > region, zone

Kubernetes does not know how the GPUs of a node are joined: those links stay unknown, unless the
chart's daemon has recorded them (`kubernetes_record`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from parctl.errors import UsageError
from parctl.topology.document import mapping, mappings, read_documents, text_of
from parctl.topology.model import Hardware, Node, Topology
from parctl.topology.names import few
from parctl.topology.placement.order import natural_key
from parctl.topology.sources.kubernetes_labels import (
    KNOWN_PREFIXES,
    label,
    looks_like_labels,
    nvlink_domain,
    tier_labels,
)
from parctl.topology.sources.kubernetes_node import (
    NodeFacts,
    gather,
    hardware_of,
    with_node_faults,
)
from parctl.topology.sources.kubernetes_record import (
    Recorded,
    as_recorded,
    handed_out,
    is_record,
    read_records,
)
from parctl.topology.sources.kubernetes_slices import read_slices

LABEL = "k8s-label"
KUEUE = "kueue"

_OBJECT = re.compile(r'(?m)^[\s\-{,\["]*apiVersion"?\s*:')
_LABEL_LINE = re.compile(
    r'(?m)^[\s{,"]*(?:' + "|".join(map(re.escape, KNOWN_PREFIXES)) + r')[\w./-]*"?\s*:'
)


@dataclass(slots=True)
class Objects:
    """What was found in the texts, by kind."""

    nodes: list[Mapping[str, Any]] = field(default_factory=list)
    slices: list[Mapping[str, Any]] = field(default_factory=list)
    kueue: list[Mapping[str, Any]] = field(default_factory=list)
    records: list[Mapping[str, Any]] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)  # sentences


def looks_like(text: str) -> bool:
    """Whether the text holds Kubernetes objects, or labels of a node."""
    return bool(_OBJECT.search(text) or '"apiVersion"' in text or _LABEL_LINE.search(text))


def read_text(text: str, name: str) -> Topology:
    """Read one text. Raises UsageError when there is nothing about nodes in it."""
    return read_texts([(text, name)])


def read_texts(texts: Sequence[tuple[str, str]]) -> Topology:
    """Read several texts as one cluster: nodes may be in one, slices and Kueue in others."""
    objects = Objects()
    names = [name for _, name in texts]
    for text, name in texts:
        documents = read_documents(text, name)
        if documents.cut:
            objects.cut.append(documents.cut)
        for value in documents.values:
            _sort(value, objects, name)
    topology = build(objects, name=" + ".join(names), source=f"k8s {' + '.join(names)}")
    if not (topology.nodes or topology.tiers):
        raise UsageError(
            f"{', '.join(names)}: Kubernetes objects, but no Node, no ResourceSlice of a node, no "
            "NodeTopology and no levels of a Kueue Topology",
            hint="`kubectl get nodes,resourceslices -o json > FILE` writes what is needed",
        )
    return topology


def build(objects: Objects, *, name: str, source: str) -> Topology:
    """Make the topology of these objects."""
    found = read_slices(objects.slices)
    records, unread = read_records(objects.records)
    facts = [gather(node, found) for node in _unique(objects.nodes)]
    known = {fact.name for fact in facts}
    alone = [node for node in dict.fromkeys([*found, *records]) if node not in known]
    facts += [gather(_bare(node), found) for node in alone]
    facts.sort(key=lambda fact: natural_key(fact.name))
    facts, left_out = _workers(facts, records)
    levels = [_levels(item) for item in objects.kueue]
    tiers = tier_labels([fact.labels for fact in facts], [level for level in levels if level])
    from_kueue = tiers and tuple(reversed(tiers)) in levels
    shared: dict[object, Any] = {}
    nodes = []
    for fact in facts:
        domain = nvlink_domain(fact.labels, product=fact.product)
        values = tuple(_tier_value(fact, key) for key in tiers)
        recorded = records.get(fact.name)
        if recorded is None:
            plain = hardware_of(fact)
            hardware = shared.setdefault(_signature(plain), plain)
        else:
            hardware = _with_record(fact, recorded)
        sources = {"domain": f"{LABEL} {domain[1]}"} if domain else {}
        if recorded is not None and recorded.domain is not None:
            domain = recorded.domain, ""
            sources = {"domain": recorded.domain_source or "nvml"}
        nodes.append(
            Node(
                name=fact.name,
                hardware=hardware,
                domain=domain[0] if domain else None,
                tiers=values,
                sources=sources | ({"tiers": KUEUE if from_kueue else LABEL} if any(tiers) else {}),
            )
        )
    return Topology(
        name=name,
        source=source,
        tiers=tiers,
        nodes=tuple(nodes),
        warnings=(*left_out, *_warnings(facts)),
        unknown=(*unread, *_unknown(objects, facts, nodes, tiers)),
    )


def _sort(value: Any, objects: Objects, name: str) -> None:
    """Put one document, or each item of a list of them, where it belongs."""
    items = value if isinstance(value, list) else [value]
    for item in items:
        inside = mappings(item.get("items")) if isinstance(item, Mapping) else []
        for entry in inside or [item]:
            if isinstance(entry, Mapping):
                _sort_one(entry, objects, name)


def _sort_one(item: Mapping[str, Any], objects: Objects, name: str) -> None:
    kind, group = text_of(item.get("kind")), text_of(item.get("apiVersion")) or ""
    if kind == "Node":
        objects.nodes.append(item)
    elif kind == "ResourceSlice":
        objects.slices.append(item)
    elif is_record(item):
        objects.records.append(item)
    elif kind == "Topology" and group.startswith("kueue."):
        objects.kueue.append(item)
    elif kind is None and not group:
        keys = [key for key in item if isinstance(key, str)]
        if "metadata" in item:
            objects.nodes.append(item)
        elif "labels" in item or "annotations" in item:
            named = label(mapping(item, "labels"), "kubernetes.io/hostname") or _stem(name)
            objects.nodes.append({"metadata": {"name": named, **item}})
        elif looks_like_labels(keys):
            named = label(item, "kubernetes.io/hostname") or _stem(name)
            objects.nodes.append({"metadata": {"name": named, "labels": item}})


def _stem(name: str) -> str:
    return PurePath(name).stem.strip("-") or "node-0"


def _bare(name: str) -> Mapping[str, Any]:
    """A Node object for slices that came without one."""
    return {"metadata": {"name": name}}


def _unique(nodes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """One object per name; the last one is the newest."""
    by_name = {text_of(mapping(node, "metadata").get("name")): node for node in nodes}
    return [node for name, node in by_name.items() if name is not None]


def _levels(item: Mapping[str, Any]) -> tuple[str, ...]:
    labels = [
        text_of(level.get("nodeLabel")) for level in mappings(mapping(item, "spec").get("levels"))
    ]
    return tuple(key for key in labels if key is not None)


def _with_record(fact: NodeFacts, recorded: Recorded) -> Hardware:
    """The inside of a node that its daemon has read, as far as the cluster hands it out."""
    fact.warnings += recorded.warnings
    if any(device.mig for device in fact.devices):
        return hardware_of(fact)  # slices are handed out, the daemon sees what they are cut from
    read = as_recorded(recorded, num_cpus=fact.num_cpus, memory_bytes=fact.memory_bytes)
    if fact.devices and len(fact.devices) != len(read.devices):
        fact.warnings.append(
            f"{len(read.devices)} GPUs are there ({read.sources.get('matrix', 'nvml')}), "
            f"{len(fact.devices)} are allocatable"
        )
        read = handed_out(read, len(fact.devices))
    return with_node_faults(read, fact.faults)


def _workers(
    facts: Sequence[NodeFacts], records: Mapping[str, Recorded]
) -> tuple[list[NodeFacts], list[str]]:
    """Leave out what no rank would run on: nodes without GPUs beside nodes with GPUs."""
    with_gpus = [fact for fact in facts if fact.devices or fact.name in records]
    kept = with_gpus or [fact for fact in facts if not fact.is_control_plane] or list(facts)
    stay = {fact.name for fact in kept}
    names = [fact.name for fact in facts if fact.name not in stay]
    if not names:
        return kept, []
    reason = "have no GPU" if with_gpus else "are of the control plane"
    return kept, [f"left out, since they {reason}: {few(names)}"]


def _tier_value(fact: NodeFacts, key: str) -> str:
    value = label(fact.labels, key)
    if value is None and key == "kubernetes.io/hostname":
        return fact.name
    return value or "?"


def _signature(hardware: Any) -> object:
    """Equal for nodes that can share one Hardware."""
    return repr(
        (
            hardware.kind,
            hardware.devices,
            hardware.nics,
            hardware.num_cpus,
            hardware.memory_bytes,
            hardware.sources,
        )
    )


def _warnings(facts: Sequence[NodeFacts]) -> list[str]:
    """Say each thing once, with the nodes it holds for."""
    nodes: dict[str, list[str]] = {}
    for fact in facts:
        for sentence in fact.warnings:
            nodes.setdefault(sentence, []).append(fact.name)
    return [f"{few(names)}: {sentence}" for sentence, names in nodes.items()]


def _unknown(
    objects: Objects, facts: Sequence[NodeFacts], nodes: Sequence[Node], tiers: Sequence[str]
) -> list[str]:
    sentences = list(objects.cut)
    for fact in facts:
        sentences += fact.missing
    if not nodes:
        sentences.append("nodes: only Kueue's levels are in this file")
    elif not tiers:
        sentences.append("fabric tiers: no node has a label that names one")
    else:
        lacking = [node.name for node in nodes if "?" in node.tiers]
        if lacking:
            sentences.append(f"fabric tiers of {few(lacking)}: a label is absent")
    if any(
        node.hardware.kind == "gpu" and any("?" in row for row in node.hardware.matrix)
        for node in nodes
    ):
        sentences.append(
            "links: Kubernetes does not say how the GPUs of a node are joined; "
            "`nvidia-smi topo -m` of a node does, and so does parctl's chart"
        )
    without = [node.name for node in nodes if not node.hardware.nics]
    if without and any(node.hardware.kind == "gpu" for node in nodes):
        sentences.append(f"NICs of {few(without)}")
    return sentences
