"""Put a layout in words: a reason per proof, sentences on what bound it and what is unused."""

from collections import Counter
from collections.abc import Iterator, Sequence
from math import prod

import numpy as np

from parctl.topology.layout import Proof
from parctl.topology.model import LinkClass, Node, Topology
from parctl.topology.placement.candidates import views, why_not
from parctl.topology.placement.pool import Ints, Pool
from parctl.topology.placement.proofs import AxisFacts
from parctl.topology.placement.refusal import device_noun
from parctl.topology.placement.request import EP, FSDP, PP, TP, LayoutRequest
from parctl.topology.placement.search import Choice

LINK_WORDS = {
    LinkClass.DEVICE: "nothing",
    LinkClass.NVLINK: "NVLink",
    LinkClass.XGMI: "xGMI",
    LinkClass.HOST: "shared memory",
    LinkClass.PCIE: "PCIe",
    LinkClass.NETWORK: "the network",
    LinkClass.UNKNOWN: "links nobody told us of",
}


def proof_of(facts: AxisFacts, pool: Pool, request: LayoutRequest, choice: Choice) -> Proof:
    """State the facts of one axis as a proof, with its reason."""
    return Proof(
        axis=facts.axis,
        size=facts.size,
        groups=facts.groups,
        worst_link=facts.crossing.link.value,
        bandwidth=facts.crossing.bandwidth,
        scope=facts.scope,
        nodes_per_group=facts.nodes_per_group,
        reason=_reason(facts, pool, request, choice),
    )


def _reason(facts: AxisFacts, pool: Pool, request: LayoutRequest, choice: Choice) -> str:
    link = LINK_WORDS[facts.crossing.link]
    if facts.scope == "device":
        return "one rank per group: nothing to cross"
    if facts.axis == TP:
        return _tp_reason(facts, request, link)
    if facts.axis == EP:
        return _ep_reason(facts, pool, request, link)
    pairs = "neighbouring stages" if facts.axis == PP else "every group"
    if facts.scope == "node":
        return f"{pairs} inside one node, over {link}"
    if facts.scope == "domain":
        return f"{pairs} inside one rack-scale NVLink domain, over {link}" + _filled(facts, choice)
    crossing = f"crosses nodes{_where(facts)}, over {link}"
    container, largest = _container(pool)
    inner = _ranks_up_to(facts.axis, request)
    if facts.axis == FSDP and choice.fill is not None:
        return crossing + _filled(facts, choice)
    if inner > largest:
        return (
            f"{crossing}: {facts.axis} and the axes inside it are {inner:,} ranks, a {container} "
            f"holds {largest}"
        )
    if choice.fill is not None and choice.fill.crosses_nodes:
        return f"{crossing}: what tp leaves of a {container} belongs to fsdp first"
    return (
        f"{crossing}: its place in the {container} went to axes with more traffic or before it "
        "in the order"
    )


def _where(facts: AxisFacts) -> str:
    within = f" inside one {facts.within}" if facts.within else ""
    return within + (" along one rail" if facts.on_rails else "")


def _filled(facts: AxisFacts, choice: Choice) -> str:
    """How much of a node the ranks of an fsdp group fill before the group leaves it."""
    fill = choice.fill
    if facts.axis != FSDP or fill is None or not fill.crosses_nodes:
        return ""
    node = f"{fill.node} rank{'s' * (fill.node > 1)} of a group in each node"
    if fill.domain > fill.node:
        node += f", {fill.domain} in each NVLink domain"
    return f": {node}, all that fit beside the axes inside it"


def _ep_reason(facts: AxisFacts, pool: Pool, request: LayoutRequest, link: str) -> str:
    """Say the decision between direct and hierarchical all-to-all, with its arithmetic."""
    container, largest = _container(pool)
    name = "rack-scale NVLink domain" if container == "domain" else "node"
    beside = [(EP, request.ep)]
    if prod(n for a, n in request.axes.items() if a not in (TP, PP)) % request.ep == 0:
        # otherwise ep takes its ranks from tp groups, which are then inside it
        beside.append((TP, request.tp))
    ranks = prod(size for _, size in beside)
    sum_text = " x ".join(f"{axis}({size})" for axis, size in beside if size > 1 or axis == EP)
    if len(beside) > 1 and request.tp > 1:
        sum_text += f" = {ranks:,}"
    if facts.scope in ("node", "domain"):
        where = "one node" if facts.scope == "node" else f"one {name}"
        return (
            f"direct all-to-all inside {where}, over {link}: {sum_text} ranks fit its "
            f"{largest} devices"
        )
    decision = (
        f"spans {facts.nodes_per_group} nodes{_where(facts)}, hierarchical all-to-all: "
        f"inside the node first, then over {link}"
    )
    if ranks > largest:
        return f"{decision}; {sum_text} ranks > {largest} devices of a {name}"
    return f"{decision}; not every {name} has {ranks} devices free for a whole group"


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
    container = pool.containers[pool.near]
    return container.name, pool.largest_container(container, with_stragglers=True)


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
    choice: Choice,
    proofs: Sequence[Proof],
) -> tuple[str, ...]:
    """What bound the layout and what it leaves unused."""
    used = np.unique(pool.node_of(choice.devices.reshape(-1)))
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
    if request.require:
        result.append(f"required and used: {_names(request.require)}")
    if pool.spares:
        result.append(f"kept free as spares: {_names(pool.spares)}")
    result += _left_out(topology, request, pool)
    result += _too_slow(pool, used)
    result += pool.notes
    result += _link_sources(pool)
    if request.linear:
        result.append("linear: nodes and local devices are permuted, ranks keep program order")
    return tuple(result)


def _too_slow(pool: Pool, used: Ints) -> Iterator[str]:
    """Nodes of the pool that were passed over for slower NICs."""
    rates = np.array([kind.network_crossing.rate for kind in pool.kinds])[pool.kind_of]
    unused = np.setdiff1d(np.arange(len(pool.nodes)), used)
    slower = unused[rates[unused] < rates[used].min()]
    if len(slower):
        nodes = f"{len(slower):,} node{'s' * (len(slower) > 1)}"
        yield f"not used: {nodes} with slower NICs: {_names([pool.nodes[i].name for i in slower])}"


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - 8:,} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more


def _link_sources(pool: Pool) -> Iterator[str]:
    for kind in pool.kinds:
        if kind.from_product:
            yield f"links between {kind.product} GPUs: from the table of products, not discovered"
        if kind.guessed:
            yield (
                f"warning: links between {kind.product} devices are unknown; "
                "groups inside one node are accepted without proof"
            )


def _left_out(topology: Topology, request: LayoutRequest, pool: Pool) -> list[str]:
    """Why nodes and devices of the cluster were no candidates, counted."""
    chosen = {node.name for node in pool.nodes} | {*pool.spares, *pool.others}
    insides = views(request, topology)
    has_gpus = any(inside.hardware.kind == "gpu" for inside in insides.values())
    outside = Counter(
        (
            _products(node),
            why_not(node, insides[id(node.hardware)], request, has_gpus=has_gpus)
            or (
                "slower NICs than the others"
                if insides[id(node.hardware)].product in pool.products
                else "one product for the whole job"
            ),
        )
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
