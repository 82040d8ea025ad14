"""Put every rank on a device: `lay_out(request, topology) -> Layout`.

1. Nodes are sorted by name, grouped by kind, and arranged as a pool (`pool`): one product for the
   whole job where that is possible, then everything of one device type.
2. Every axis gets the nearest container that holds its groups, by least cost, under the hard rule
   (`search`, `hard_rule`, `cost`), and blocks of ranks are packed into them (`packing`).
3. Ranks are numbered as torchrun numbers them: ranks on earlier nodes, then the local rank. The
   layout is the permutation that maps mesh coordinates to those ranks.
4. Every axis is checked on the result and proven (`proofs`).

Where devices stay unused the job is placed a second time, on its own devices alone, so that a plan
binds to itself (`late_binding`).

It is one pure function of what it is given: the same nodes in any order give the same layout. The
work is array arithmetic: 100,000 devices take about a second, most of it making their `Slot`s.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from parctl.topology.layout import Layout, Slot
from parctl.topology.model import Topology
from parctl.topology.placement.candidates import candidate_pools
from parctl.topology.placement.experts import expert_axes
from parctl.topology.placement.explain import proof_of, sentences
from parctl.topology.placement.hard_rule import largest_tp
from parctl.topology.placement.order import in_natural_order
from parctl.topology.placement.pool import Ints, Pool
from parctl.topology.placement.proofs import AxisFacts, facts_of, seconds_of
from parctl.topology.placement.refusal import refuse
from parctl.topology.placement.request import LayoutRequest, check_nodes, check_request
from parctl.topology.placement.restrict import Device, as_asked_of, only_devices
from parctl.topology.placement.search import Choice, best_choice
from parctl.topology.placement.traffic import nominal_traffic

__all__ = ["LayoutRequest", "largest_tp", "lay_out"]

ROUNDING = 1e-9


def lay_out(request: LayoutRequest, topology: Topology) -> Layout:
    """Place the ranks of `request` on `topology`. Raises CannotPlaceError with the arithmetic."""
    check_request(request)
    check_nodes(request, topology)
    topology = replace(topology, nodes=in_natural_order(topology.nodes))
    experts = expert_axes(request.axes, request.ep, request.etp)
    traffic = request.traffic
    if traffic is None:
        traffic = nominal_traffic(request.axes, request.ep)
    pools = list(candidate_pools(request, topology))
    found = _cheapest(request, pools, traffic, experts)
    if found is None:
        raise refuse(topology, request, pools, places=lambda other: _places(other, topology))
    pool, choice, facts = _on_its_own(found, request, topology, traffic, experts)
    proofs = tuple(proof_of(fact, pool, request, choice) for fact in facts)
    ranks, slots = _number(pool, choice.devices, linear=request.linear)
    return Layout(
        axes=dict(request.axes),
        expert_axes=experts,
        ranks=tuple(ranks.tolist()),
        slots=slots,
        proofs=proofs,
        explain=sentences(topology, request, pool, choice, proofs),
    )


Found = tuple[Pool, Choice, list[AxisFacts]]


def _cheapest(
    request: LayoutRequest,
    pools: list[Pool],
    traffic: Mapping[str, float],
    experts: Mapping[str, int] | None,
) -> Found | None:
    """The cheapest layout: of one product if that is possible, else of the mixed pool."""
    single = [pool for pool in pools if len(pool.products) == 1]
    mixed = [pool for pool in pools if len(pool.products) > 1]
    for group in (single, mixed):
        best: Found | None = None
        cost = math.inf
        for pool, with_stragglers in _variants(request, group):
            choice = best_choice(pool, request, traffic, with_stragglers=with_stragglers)
            if choice is not None:
                facts = facts_of(pool, request, choice.devices, experts)
                seconds = float(f"{seconds_of(facts, traffic):.9e}")
                if seconds < cost:
                    best, cost = (pool, choice, facts), seconds
        if best is not None:
            return best
    return None


def _on_its_own(
    found: Found,
    request: LayoutRequest,
    topology: Topology,
    traffic: Mapping[str, float],
    experts: Mapping[str, int] | None,
) -> Found:
    """Place the job again on the devices that it takes, as if there were no others.

    Among equals the choice may lean on devices that stay unused. Late binding does not see those,
    and a plan whose nodes come up must bind to itself.
    """
    pool, choice, facts = found
    if choice.devices.size == pool.num_devices(with_stragglers=True):
        return found
    used = _names_of(pool, choice.devices)
    asked = as_asked_of(request, used)
    pools = list(candidate_pools(asked, only_devices(topology, used)))
    again = _cheapest(asked, pools, traffic, experts)
    if again is None:
        return found
    number = {node.name: i for i, node in enumerate(pool.nodes)}
    numbers = np.array([number[node.name] for node in again[0].nodes], dtype=np.int64)
    nodes = again[0].node_of(again[1].devices)
    positions = again[1].devices - again[0].first_device[nodes]
    devices = pool.first_device[numbers[nodes]] + positions
    closed_up = facts_of(pool, request, devices, experts)
    if seconds_of(closed_up, traffic) > seconds_of(facts, traffic) * (1 + ROUNDING):
        return found
    return pool, replace(again[1], devices=devices), closed_up


def _names_of(pool: Pool, devices: Ints) -> set[Device]:
    """Node and device index of device numbers."""
    flat = devices.reshape(-1)
    nodes = pool.node_of(flat)
    positions = flat - pool.first_device[nodes]
    names = [node.name for node in pool.nodes]
    index = [[device.index for device in kind.hardware.devices] for kind in pool.kinds]
    kinds = pool.kind_of[nodes]
    return {
        (names[node], index[kind][position])
        for node, kind, position in zip(
            nodes.tolist(), kinds.tolist(), positions.tolist(), strict=True
        )
    }


def _places(request: LayoutRequest, topology: Topology) -> bool:
    """Whether a request finds a place at all."""
    traffic = nominal_traffic(request.axes, request.ep)
    pools = list(candidate_pools(request, topology))
    return any(
        best_choice(pool, request, traffic, with_stragglers=with_stragglers) is not None
        for pool, with_stragglers in _variants(request, pools)
    )


def _variants(request: LayoutRequest, pools: list[Pool]) -> Iterator[tuple[Pool, bool]]:
    """Each pool without its stragglers, then with them where no tp group could be harmed."""
    yield from ((pool, False) for pool in pools)
    if request.tp == 1 or request.allow_pcie_tp:
        yield from ((pool, True) for pool in pools if any(k.stragglers for k in pool.kinds))


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
