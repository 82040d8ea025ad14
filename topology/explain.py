"""Put a layout in words: a reason per proof, sentences on what bound it and what is unused."""

from collections import Counter
from collections.abc import Iterator, Sequence
from math import prod

import numpy as np

from parctl.topology.hard_rule import inspect
from parctl.topology.layout import Proof
from parctl.topology.model import LinkClass, Node, Topology
from parctl.topology.pool import Ints, Pool
from parctl.topology.proofs import AxisFacts
from parctl.topology.refusal import device_noun
from parctl.topology.request import PP, TP, LayoutRequest

LINK_WORDS = {
    LinkClass.DEVICE: "nothing",
    LinkClass.NVLINK: "NVLink",
    LinkClass.XGMI: "xGMI",
    LinkClass.HOST: "shared memory",
    LinkClass.PCIE: "PCIe",
    LinkClass.NETWORK: "the network",
    LinkClass.UNKNOWN: "links nobody told us of",
}


def proof_of(facts: AxisFacts, pool: Pool, request: LayoutRequest) -> Proof:
    """State the facts of one axis as a proof, with its reason."""
    return Proof(
        axis=facts.axis,
        size=facts.size,
        groups=facts.groups,
        worst_link=facts.crossing.link.value,
        bandwidth=facts.crossing.bandwidth,
        scope=facts.scope,
        nodes_per_group=facts.nodes_per_group,
        reason=_reason(facts, pool, request),
    )


def _reason(facts: AxisFacts, pool: Pool, request: LayoutRequest) -> str:
    link = LINK_WORDS[facts.crossing.link]
    if facts.scope == "device":
        return "one rank per group: nothing to cross"
    if facts.axis == TP:
        return _tp_reason(facts, request, link)
    pairs = "neighbouring stages" if facts.axis == PP else "every group"
    if facts.scope == "node":
        return f"{pairs} inside one node, over {link}"
    if facts.scope == "domain":
        return f"{pairs} inside one rack-scale NVLink domain, over {link}"
    container, largest = _container(pool)
    inner = _ranks_up_to(facts.axis, request)
    if inner > largest:
        within = (
            f"{facts.axis} and the axes inside it are {inner:,} ranks, a {container} "
            f"holds {largest}"
        )
    else:
        within = (
            f"its place in the {container} went to axes with more traffic or before it in the order"
        )
    return f"crosses nodes, over {link}: {within}"


def _tp_reason(facts: AxisFacts, request: LayoutRequest, link: str) -> str:
    if facts.scope == "domain":
        return (
            "one rack-scale NVLink domain, which counts as one node; each group spans up to "
            f"{facts.nodes_per_group} nodes"
        )
    if facts.scope == "cluster":
        return f"crosses nodes over {link}: `allow_cross_node_tp` permits it"
    if facts.crossing.link is LinkClass.PCIE:
        return "inside one node over PCIe: `allow_pcie_tp` permits it"
    if facts.crossing.link is LinkClass.HOST:
        return "CPU devices of one node, which share its memory"
    if facts.crossing.link is LinkClass.UNKNOWN:
        return "inside one node; its links are unknown, accepted without proof"
    lives = " (sp lives with it)" if request.sp else ""
    return f"one full {link} mesh of one node, the hard rule{lives}"


def _container(pool: Pool) -> tuple[str, int]:
    """The largest thing whose devices meet without the network, and how many it holds."""
    name, container = next(
        (item for item in pool.containers if item[0] == "domain"), pool.containers[0]
    )
    return name, pool.largest_container(container, with_stragglers=True)


def _ranks_up_to(axis: str, request: LayoutRequest) -> int:
    """Ranks of one block of the mesh from `axis` inwards; all data axes for the expert view."""
    names = list(request.axes)
    if axis not in names:
        return prod(size for name, size in request.axes.items() if name != PP)
    return prod(
        size for name, size in request.axes.items() if names.index(name) >= names.index(axis)
    )


def sentences(
    topology: Topology,
    request: LayoutRequest,
    pool: Pool,
    devices: Ints,
    proofs: Sequence[Proof],
    left_out: Sequence[str],
) -> tuple[str, ...]:
    """What bound the layout and what it leaves unused."""
    used = np.unique(pool.node_of(devices.reshape(-1)))
    all_nodes, total = len(topology.nodes), topology.num_devices
    result = [
        f"{request.arithmetic}: {device_noun(topology, request.world_size)} on "
        f"{len(used):,} of {all_nodes:,} node{'s' if all_nodes > 1 else ''}"
    ]
    result += [f"{p.axis}({p.size}): {p.reason}" for p in proofs if p.size > 1]
    if total > request.world_size:
        whole = all_nodes - len(used)
        nodes = f", {whole:,} whole node{'s' * (whole > 1)} among them" if whole else ""
        result.append(f"unused: {device_noun(topology, total - request.world_size)}{nodes}")
    result += left_out
    result += pool.notes
    result += _link_sources(pool)
    if request.linear:
        result.append("linear: nodes and local devices are permuted, ranks keep program order")
    return tuple(result)


def _link_sources(pool: Pool) -> Iterator[str]:
    for kind in pool.kinds:
        if kind.from_product:
            yield f"links between {kind.product} GPUs: from the table of products, not discovered"
        if kind.guessed:
            yield (
                f"warning: links between {kind.product} devices are unknown; "
                "groups inside one node are accepted without proof"
            )


def left_out(topology: Topology, request: LayoutRequest, pool: Pool) -> list[str]:
    """Why nodes and devices of the cluster were no candidates, counted."""
    chosen = {node.name for node in pool.nodes}
    outside = Counter(
        (_products(node), _why_not(node, request, pool))
        for node in topology.nodes
        if node.name not in chosen
    )
    result = [
        f"not used: {count:,} {products} node{'s' if count > 1 else ''}: {why}"
        for (products, why), count in sorted(outside.items())
    ]
    faults = [
        f"{node.name} gpu {device.index} is not used: {'; '.join(device.faults)}"
        for node in topology.nodes
        for device in node.hardware.devices
        if device.faults
    ]
    result += faults[:8]
    if len(faults) > 8:
        result.append(f"{len(faults) - 8} more devices with faults are not used")
    for number, kind in enumerate(pool.kinds):
        if kind.stragglers and request.tp > 1:
            where = [pool.nodes[i].name for i in np.flatnonzero(pool.kind_of == number)[:4]]
            gpus = ", ".join(str(kind.hardware.devices[i].index) for i in kind.stragglers)
            result.append(f"gpu {gpus} of {', '.join(where)}: no NVLink, so in no tp group")
    return result


def _products(node: Node) -> str:
    return "+".join(sorted({d.product or "unknown" for d in node.hardware.devices}))


def _why_not(node: Node, request: LayoutRequest, pool: Pool) -> str:
    if all(device.faults for device in node.hardware.devices):
        return "every device has a fault"
    if node.hardware.kind != pool.nodes[0].hardware.kind:
        return "a job runs on GPUs or on CPUs, not on both"
    if request.tp > 1 and inspect(node.hardware, allow_pcie=request.allow_pcie_tp).pcie_only:
        return "its GPUs are joined by PCIe only, and tp needs a full mesh"
    return "one product for the whole job"
