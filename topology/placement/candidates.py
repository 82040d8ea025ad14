"""Which nodes a job may use: pools of one product, then one of everything alike enough.

Where NICs differ, the faster nodes of a pool are a pool of their own too.

Excluded nodes, nodes without a usable device, CPU nodes beside GPUs, and for tp nodes that are
joined by PCIe only are no candidates. A pool that lacks a required node, or cannot keep the spares
free, is none either.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace

from parctl.topology.model import Hardware, Node, Topology
from parctl.topology.placement.hard_rule import Inside, inspect
from parctl.topology.placement.pool import Pool, make_pool
from parctl.topology.placement.request import LayoutRequest

# more rates than this are no classes of nodes, but noise
MAX_RATES = 4


def candidate_pools(request: LayoutRequest, topology: Topology) -> Iterator[Pool]:
    """Pools of nodes, given in natural order, in the order in which they are tried."""
    insides = views(request, topology)
    has_gpus = any(inside.hardware.kind == "gpu" for inside in insides.values())
    by_product: dict[str, list[Node]] = {}
    candidates: list[Node] = []
    for node in topology.nodes:
        inside = insides[id(node.hardware)]
        if why_not(node, inside, request, has_gpus=has_gpus) is None:
            candidates.append(node)
            by_product.setdefault(inside.product, []).append(node)
    groups = [*by_product.values(), *([candidates] if len(by_product) > 1 else [])]
    for nodes in (faster for group in groups for faster in _by_rate(group, insides)):
        if len(nodes) <= request.spares or not set(request.require) <= {n.name for n in nodes}:
            continue
        pool = make_pool(
            nodes, insides, topology.tiers, required=request.require, spares=request.spares
        )
        if len(pool.spares) == request.spares:
            yield pool
            if request.require:
                yield from _just_enough(pool, request, insides, topology.tiers)


def _just_enough(
    pool: Pool, request: LayoutRequest, insides: dict[int, Inside], tiers: Sequence[str]
) -> Iterator[Pool]:
    """The required nodes and no more of their neighbours than the job needs: all are used."""
    per_kind = [kind.num_meshes(request.tp) * request.tp for kind in pool.kinds]
    if request.tp > max(kind.largest_mesh for kind in pool.kinds):
        per_kind = [len(kind.members(False)) for kind in pool.kinds]
    required = set(request.require)
    walk = sorted(pool.walk.tolist(), key=lambda i: pool.nodes[i].name not in required)
    kept: set[str] = set()
    room = 0
    for i in walk:
        if room >= request.world_size and pool.nodes[i].name not in required:
            break
        kept.add(pool.nodes[i].name)
        room += per_kind[pool.kind_of[i]]
    if room >= request.world_size and len(kept) < len(pool.nodes):
        nodes = [node for node in pool.nodes if node.name in kept]
        smaller = make_pool(nodes, insides, tiers, required=request.require)
        others = frozenset(node.name for node in pool.nodes) - kept
        yield replace(smaller, spares=pool.spares, others=others)


def _by_rate(nodes: list[Node], insides: dict[int, Inside]) -> Iterator[list[Node]]:
    """All nodes, then those that have at least the second slowest rate, and so on."""
    rate = {key: inside.network_crossing.rate for key, inside in insides.items()}
    slowest = sorted({rate[id(node.hardware)] for node in nodes})[:MAX_RATES]
    for least in slowest:
        yield [node for node in nodes if rate[id(node.hardware)] >= least]


def views(request: LayoutRequest, topology: Topology) -> dict[int, Inside]:
    """Every node's hardware through the hard rule, by its id; alike ones share one view.

    Real nodes differ in the uuids of their devices. What decides a layout is usually the same.
    """
    shared: dict[Hashable, Inside] = {}
    found: dict[int, Inside] = {}
    for node in topology.nodes:
        hardware = node.hardware
        if id(hardware) not in found:
            key = _facts(hardware)
            if key not in shared:
                shared[key] = inspect(hardware, allow_pcie=request.allow_pcie_tp)
            found[id(hardware)] = shared[key]
    return found


def _facts(hardware: Hardware) -> Hashable:
    """What of a node decides where ranks may go."""
    return (
        hardware.kind,
        tuple((d.index, d.product, d.numa, bool(d.faults)) for d in hardware.devices),
        hardware.matrix,
        tuple((nic.speed_gbit_s, nic.rail) for nic in hardware.nics),
        hardware.nic_matrix,
    )


def why_not(node: Node, inside: Inside, request: LayoutRequest, *, has_gpus: bool) -> str | None:
    """Why a node is no candidate, whatever the others are. None: it is one."""
    if node.name in request.exclude:
        return "excluded by name"
    if not inside.usable:
        return "every device has a fault"
    if node.hardware.kind == "cpu" and has_gpus:
        return "a job runs on GPUs or on CPUs, not on both"
    if request.tp > 1 and inside.pcie_only:
        return "its GPUs are joined by PCIe only, and tp needs a full mesh"
    return None
