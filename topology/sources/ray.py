"""Ray's nodes: what `ray list nodes --detail --format json`, `ray.nodes()` or the dashboard print.

Ray counts GPUs and knows their kind, not how they are joined. Places are read from labels: ours
(`parctl.dev/...`, written by `parctl topology -o ray-labels`), then Ray's zone and region. Live
clusters are asked over the dashboard's REST API, so that no Ray needs to be installed.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parctl.errors import BackendError, UsageError
from parctl.topology.document import mapping, mappings, read_documents, text_of, whole_number
from parctl.topology.model import Device, Hardware, Node, Topology
from parctl.topology.names import few
from parctl.topology.placement.order import natural_key
from parctl.topology.products import find_product
from parctl.topology.sources.plain import cpu_slots, gpu_hardware
from parctl.topology.sources.ray_dashboard import Dashboard, find_dashboard

SOURCE = "ray"
LABEL = "ray-label"
DOMAIN_LABEL = "parctl.dev/nvlink-domain"
NODE_LABEL, PRODUCT_LABEL = "parctl.dev/node", "parctl.dev/product"
TIER_LABEL = re.compile(r"parctl\.dev/tier-(\d{1,3})")  # 0 is the nearest
PLACE_LABELS = ("ray.io/availability-zone", "ray.io/availability-region")  # nearest first
MAX_NODES = 10_000  # the most that Ray's state API lists
MAX_GPUS = 1024
MIB = 2**20
_PYTHON = re.compile(r"\s*\[\s*\{\s*'")


@dataclass(frozen=True, slots=True, kw_only=True)
class RayNode:
    """One node, whichever of the three forms it was printed in."""

    node_id: str
    host: str | None
    address: str | None
    alive: bool
    resources: Mapping[str, Any]
    labels: Mapping[str, Any]
    gpus: Sequence[Mapping[str, Any]]  # as the dashboard lists them, else empty


def looks_like(text: str) -> bool:
    """Whether the text is a list of Ray's nodes."""
    return (
        re.search(r'"?\bnode_id"?\s*:', text) is not None
        and re.search(r'"?\b(?:is_head_node|resources_total)"?\s*:', text) is not None
    ) or bool(re.search(r'["\']?(?:NodeManagerAddress|nodeManagerAddress)["\']?\s*:', text))


def read_text(text: str, name: str) -> Topology:
    """Read a saved list. Raises UsageError when no node is in it."""
    if _PYTHON.match(text):
        text = f"--- {text.lstrip()}"  # what Python prints of a list is YAML, not JSON
    documents = read_documents(text, name)
    nodes = [_node(entry) for value in documents.values for entry in _entries(value)]
    if not nodes:
        raise UsageError(
            f"{name}: looks like Ray's nodes, but no node is listed",
            hint="`ray list nodes --detail --format json > FILE` writes them",
        )
    return build(nodes, name=name, source=f"{SOURCE} {name}", cut=documents.cut)


def read_cluster(address: str | None) -> Topology:
    """Ask the dashboard of a running cluster. Raises BackendError when it does not answer."""
    dashboard = find_dashboard(address)
    place = dashboard.address
    nodes = list_nodes(dashboard)
    if not nodes:
        raise BackendError(f"Ray at {place} lists no node")
    return build(nodes, name=f"ray {place}", source=f"{SOURCE} {place}", cut=None)


def list_nodes(dashboard: Dashboard) -> list[RayNode]:
    """Every node that the cluster knows of, dead ones too."""
    answer = dashboard.get("/api/v0/nodes", detail=1, limit=MAX_NODES)
    nodes = [_node(entry) for entry in _entries(answer)]
    try:  # the dashboard's own view names every GPU; it may be switched off
        summary = [_node(entry) for entry in _entries(dashboard.get("/nodes", view="summary"))]
    except BackendError:
        return nodes
    detailed = {node.node_id: node for node in summary}
    return [_joined(node, detailed.get(node.node_id)) for node in nodes]


def nodes_of(entries: Sequence[Mapping[str, Any]]) -> list[RayNode]:
    """The nodes in what `ray.nodes()` returns."""
    return [_node(entry) for entry in entries]


def named_nodes(nodes: Sequence[RayNode]) -> dict[str, RayNode]:
    """The living nodes by the names that a topology of them has."""
    alive = [node for node in nodes if node.alive]
    return dict(zip(_names(alive), alive, strict=True))


def build(nodes: Sequence[RayNode], *, name: str, source: str, cut: str | None) -> Topology:
    """Make the topology of the living nodes."""
    alive = [node for node in nodes if node.alive]
    warnings = []
    if len(alive) < len(nodes):
        warnings.append(f"{len(nodes) - len(alive)} of {len(nodes)} Ray nodes are dead")
    named = sorted(zip(_names(alive), alive, strict=True), key=lambda pair: natural_key(pair[0]))
    with_gpus = [pair for pair in named if _num_gpus(pair[1])]
    kind, count = ("GPU", _num_gpus) if with_gpus else ("CPU", _num_cpus)
    chosen = [pair for pair in named if count(pair[1])] or named
    if len(chosen) < len(named):  # such as a head that is kept free of work
        gone = [host for host, node in named if not count(node)]
        warnings.append(f"left out, since they have no {kind}: {few(gone)}")
    tiers = _tiers([node for _, node in chosen])
    shared: dict[str, Hardware] = {}
    result = []
    for host, node in chosen:
        hardware = _hardware(node)
        domain = text_of(node.labels.get(DOMAIN_LABEL))
        result.append(
            Node(
                name=host,
                hardware=shared.setdefault(repr(hardware), hardware),
                domain=domain,
                tiers=tuple(text_of(node.labels.get(key)) or "?" for key in tiers),
                sources=({"domain": LABEL} if domain else {}) | ({"tiers": LABEL} if tiers else {}),
            )
        )
    unknown = [cut] if cut else []
    if not tiers:
        unknown.append("fabric tiers: Ray's nodes have no label that names one")
    if with_gpus:
        unknown += [
            "links: Ray does not say how the GPUs of a node are joined",
            f"NICs of {few([host for host, _ in chosen])}",
        ]
    return Topology(
        name=name,
        source=source,
        tiers=tuple(tiers),
        nodes=tuple(result),
        warnings=tuple(warnings),
        unknown=tuple(unknown),
    )


def _entries(value: Any) -> list[Mapping[str, Any]]:
    """Find the list of nodes in what the REST API wraps it in."""
    for _ in range(4):
        if isinstance(value, Mapping):
            inner = next(
                (
                    value[key]
                    for key in ("data", "summary", "result", "nodes")
                    if isinstance(value.get(key), Mapping | list)
                ),
                None,
            )
            if inner is None:
                return [value] if "node_id" in value or "NodeID" in value else []
            value = inner
    return mappings(value)


def _node(entry: Mapping[str, Any]) -> RayNode:
    raylet = mapping(entry, "raylet")

    def first(*keys: str) -> str | None:
        found = (text_of(entry.get(key)) or text_of(raylet.get(key)) for key in keys)
        return next((text for text in found if text), None)

    state = (first("state") or ("ALIVE" if entry.get("Alive", True) else "DEAD")).upper()
    address = first("node_ip", "NodeManagerAddress", "nodeManagerAddress", "ip")
    host = first("NodeManagerHostname", "nodeManagerHostname", "hostname", "node_name")
    return RayNode(
        node_id=first("node_id", "NodeID", "nodeId") or "",
        host=host if host != address else None,
        address=address,
        alive=state == "ALIVE",
        resources=mapping(entry, "resources_total")
        or mapping(entry, "Resources")
        or mapping(raylet, "resourcesTotal"),
        labels=mapping(entry, "labels") or mapping(entry, "Labels") or mapping(raylet, "labels"),
        gpus=mappings(entry.get("gpus")),
    )


def _joined(node: RayNode, detail: RayNode | None) -> RayNode:
    if detail is None:
        return node
    return RayNode(
        node_id=node.node_id,
        host=detail.host or node.host,
        address=node.address,
        alive=node.alive,
        resources=node.resources or detail.resources,
        labels=node.labels or detail.labels,
        gpus=detail.gpus,
    )


def _names(nodes: Sequence[RayNode]) -> list[str]:
    """Host names; several Ray nodes of one host are told apart by their id."""
    plain = [
        text_of(node.labels.get(NODE_LABEL))
        or node.host
        or node.address
        or node.node_id[:12]
        or "node"
        for node in nodes
    ]
    times = Counter(plain)
    return [
        name if times[name] == 1 else f"{name}-{node.node_id[:8] or position}"
        for position, (name, node) in enumerate(zip(plain, nodes, strict=True))
    ]


def _num_gpus(node: RayNode) -> int:
    return whole_number(node.resources.get("GPU"), most=MAX_GPUS) or 0


def _num_cpus(node: RayNode) -> int:
    return whole_number(node.resources.get("CPU"), most=10**6) or 0


def _tiers(nodes: Sequence[RayNode]) -> list[str]:
    present = {key for node in nodes for key in node.labels if text_of(node.labels.get(key))}
    numbered = {int(match[1]): key for key in present if (match := TIER_LABEL.fullmatch(str(key)))}
    return [numbered[number] for number in sorted(numbered)] or [
        key for key in PLACE_LABELS if key in present
    ]


def _hardware(node: RayNode) -> Hardware:
    num_cpus = _num_cpus(node) or None
    memory = whole_number(node.resources.get("memory"), most=2**60)
    count = _num_gpus(node)
    if not count and num_cpus:
        return cpu_slots(num_cpus, memory, source=SOURCE)
    listed = node.gpus if len(node.gpus) == count else ()
    named = [text_of(node.labels.get(key)) for key in (PRODUCT_LABEL, "ray.io/accelerator-type")]
    named += [
        str(key).partition(":")[2]
        for key in node.resources
        if str(key).startswith("accelerator_type:")
    ]
    kind = next((name for name in named if name), None)
    devices = [_device(i, kind, listed[i] if listed else {}) for i in range(count)]
    return gpu_hardware(devices, source=SOURCE, num_cpus=num_cpus, memory_bytes=memory)


def _device(position: int, kind: str | None, entry: Mapping[str, Any]) -> Device:
    name = text_of(entry.get("name")) or kind
    product = find_product(name) if name else None
    memory = whole_number(entry.get("memoryTotal"), most=2**32)
    index = whole_number(entry.get("index"), most=MAX_GPUS)
    facts = {
        "product": product.key if product else name,
        "uuid": text_of(entry.get("uuid")),
        "memory_bytes": None if memory is None else memory * MIB,
    }
    return Device(
        index=position if index is None else index,
        product=product.key if product else name,
        uuid=text_of(entry.get("uuid")),
        memory_bytes=None if memory is None else memory * MIB,
        numa=None,
        pci=None,
        sources={"index": SOURCE}
        | {key: SOURCE for key, value in facts.items() if value is not None},
    )
