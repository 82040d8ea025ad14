"""Put every rank on a device: `lay_out(request, topology) -> Layout`.

1. Nodes are sorted by name, grouped by kind, and arranged as a pool (`pool`): one product for the
   whole job where that is possible, then everything of one device type.
2. Every axis gets the nearest container that holds its groups, by least cost, under the hard rule
   (`search`, `hard_rule`, `cost`), and blocks of ranks are packed into them (`packing`).
3. Ranks are numbered as torchrun numbers them: ranks on earlier nodes, then the local rank. The
   layout is the permutation that maps mesh coordinates to those ranks.
4. Every axis is checked on the result and proven (`proofs`).

It is one pure function of what it is given: the same nodes in any order give the same layout. The
work is array arithmetic: 100,000 devices take about a second, most of it making their `Slot`s.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from parctl.topology.experts import expert_axes, expert_grid
from parctl.topology.explain import left_out, proof_of, sentences
from parctl.topology.hard_rule import Inside, inspect, largest_tp
from parctl.topology.layout import Layout, Slot
from parctl.topology.model import Node, Topology
from parctl.topology.order import in_natural_order
from parctl.topology.pool import Ints, Pool, make_pool
from parctl.topology.proofs import AxisFacts, axis_facts
from parctl.topology.refusal import refuse
from parctl.topology.request import PP, LayoutRequest, check_request
from parctl.topology.search import Choice, best_choice
from parctl.topology.traffic import nominal_traffic

__all__ = ["LayoutRequest", "largest_tp", "lay_out"]


def lay_out(request: LayoutRequest, topology: Topology) -> Layout:
    """Place the ranks of `request` on `topology`. Raises CannotPlaceError with the arithmetic."""
    check_request(request)
    topology = replace(topology, nodes=in_natural_order(topology.nodes))
    experts = expert_axes(request.axes, request.ep, request.etp)
    traffic = request.traffic
    if traffic is None:
        traffic = nominal_traffic(request.axes, request.ep)
    pools = list(_pools(request, topology))
    found = _first_fit(request, pools, traffic)
    if found is None:
        raise refuse(topology, request, pools)
    pool, choice = found
    facts = list(facts_of(pool, request, choice.devices, experts))
    proofs = tuple(proof_of(fact, pool, request) for fact in facts)
    ranks, slots = _number(pool, choice.devices, linear=request.linear)
    return Layout(
        axes=dict(request.axes),
        expert_axes=experts,
        ranks=tuple(ranks.tolist()),
        slots=slots,
        proofs=proofs,
        explain=sentences(
            topology, request, pool, choice.devices, proofs, left_out(topology, request, pool)
        ),
    )


def facts_of(
    pool: Pool, request: LayoutRequest, devices: Ints, experts: Mapping[str, int] | None
) -> Iterator[AxisFacts]:
    """Facts of every mesh axis, then of the expert view's own axes."""
    for position, axis in enumerate(request.axes):
        groups = np.moveaxis(devices, position, -1).reshape(-1, devices.shape[position])
        yield axis_facts(pool, axis, groups, neighbours=axis == PP)
    if experts is None:
        return
    grid = expert_grid(request.axes, experts, devices)
    for position, axis in enumerate(experts):
        if axis not in request.axes:
            groups = np.moveaxis(grid, position, -1).reshape(-1, grid.shape[position])
            yield axis_facts(pool, axis, groups, neighbours=False)


def _first_fit(
    request: LayoutRequest, pools: list[Pool], traffic: Mapping[str, float]
) -> tuple[Pool, Choice] | None:
    """The cheapest choice: of one product if that is possible, else of the mixed pool."""
    single = [pool for pool in pools if len({kind.product for kind in pool.kinds}) == 1]
    for group in (single, [pool for pool in pools if pool not in single]):
        found = [
            (choice.seconds, number, pool, choice)
            for number, (pool, with_stragglers) in enumerate(_variants(request, group))
            if (choice := best_choice(pool, request, traffic, with_stragglers=with_stragglers))
        ]
        if found:
            _, _, pool, choice = min(found, key=lambda item: item[:2])
            return pool, choice
    return None


def _variants(request: LayoutRequest, pools: list[Pool]) -> Iterator[tuple[Pool, bool]]:
    """Each pool without its stragglers, then with them where no tp group could be harmed."""
    yield from ((pool, False) for pool in pools)
    if request.tp == 1 or request.allow_pcie_tp:
        yield from ((pool, True) for pool in pools if any(k.stragglers for k in pool.kinds))


def _pools(request: LayoutRequest, topology: Topology) -> Iterator[Pool]:
    """One pool per product, then one of all GPUs when there are several; CPUs only without GPUs."""
    insides: dict[int, Inside] = {}
    for node in topology.nodes:
        if id(node.hardware) not in insides:
            insides[id(node.hardware)] = inspect(node.hardware, allow_pcie=request.allow_pcie_tp)
    by_product: dict[str, list[Node]] = {}
    candidates = []
    has_gpus = any(node.hardware.kind == "gpu" for node in topology.nodes)
    for node in topology.nodes:
        inside = insides[id(node.hardware)]
        if not inside.usable or (has_gpus and node.hardware.kind == "cpu"):
            continue
        if request.tp > 1 and inside.pcie_only:
            continue
        candidates.append(node)
        by_product.setdefault(inside.product, []).append(node)
    for nodes in by_product.values():
        yield make_pool(nodes, insides, topology.tiers)
    if len(by_product) > 1:
        yield make_pool(candidates, insides, topology.tiers)


def _number(pool: Pool, devices: Ints, *, linear: bool) -> tuple[Ints, tuple[Slot, ...]]:
    """Ranks by mesh coordinate (flat), and the slot of every rank."""
    flat = devices.reshape(-1)
    if linear:
        chosen, ranks = flat, np.arange(len(flat), dtype=np.int64)
    else:
        order = np.argsort(flat)
        chosen, ranks = flat[order], np.empty_like(order)
        ranks[order] = np.arange(len(flat))
    nodes = pool.node_of(chosen)
    starts = np.concatenate([[True], nodes[1:] != nodes[:-1]])
    node_rank = np.cumsum(starts) - 1
    local_rank = np.arange(len(chosen)) - np.flatnonzero(starts)[node_rank]
    positions = chosen - pool.first_device[nodes]
    index = [[device.index for device in kind.hardware.devices] for kind in pool.kinds]
    kinds = pool.kind_of[nodes].tolist()
    names = [node.name for node in pool.nodes]
    slots = tuple(
        Slot(
            rank=rank,
            node=names[node],
            node_rank=by_node,
            local_rank=local,
            gpu=index[kind][position],
        )
        for rank, (node, by_node, local, kind, position) in enumerate(
            zip(
                nodes.tolist(),
                node_rank.tolist(),
                local_rank.tolist(),
                kinds,
                positions.tolist(),
                strict=True,
            )
        )
    )
    return ranks, slots
