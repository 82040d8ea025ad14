"""Proofs: for every axis, what the worst of its groups crosses, read off the finished layout.

Nothing here knows how the layout was found. Groups inside one node are looked up in that node's
link matrix, once per distinct pattern of positions; of groups that leave the node only the domain
and the network matter. Pipeline stages talk to their neighbours alone, so the links of `pp` are
those between consecutive stages; of every other axis the worst pair of a group counts.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from parctl.topology.cost import (
    DOMAIN_LATENCY_S,
    NETWORK_LATENCY_S,
    NODE_LATENCY_S,
    NOTHING,
    Crossing,
)
from parctl.topology.hard_rule import Inside
from parctl.topology.layout import Scope
from parctl.topology.links import BADNESS, link_bandwidth, link_class, link_count
from parctl.topology.model import LinkClass
from parctl.topology.pool import Ints, Pool
from parctl.topology.products import find_product

LATENCY_S: Mapping[Scope, float] = {
    "device": 0.0,
    "node": NODE_LATENCY_S,
    "domain": DOMAIN_LATENCY_S,
    "cluster": NETWORK_LATENCY_S,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisFacts:
    """The worst that the groups of one axis cross, before it is put in words."""

    axis: str
    size: int
    groups: int
    scope: Scope
    nodes_per_group: int
    crossing: Crossing


def axis_facts(pool: Pool, axis: str, groups: Ints, *, neighbours: bool) -> AxisFacts:
    """Look at all groups (rows of device numbers) of one axis."""
    count, size = groups.shape
    if size == 1:
        return AxisFacts(
            axis=axis, size=1, groups=count, scope="device", nodes_per_group=1, crossing=NOTHING
        )
    nodes = pool.node_of(groups)
    spread, scope = _spread(pool, nodes)
    if neighbours:
        groups = np.stack([groups[:, :-1].reshape(-1), groups[:, 1:].reshape(-1)], axis=1)
    found = list(_crossings(pool, groups, LATENCY_S[scope]))
    return AxisFacts(
        axis=axis,
        size=size,
        groups=count,
        scope=scope,
        nodes_per_group=spread,
        crossing=max(found, key=lambda c: (BADNESS[c.link], -(c.bandwidth or 0))),
    )


def _spread(pool: Pool, nodes: Ints) -> tuple[int, Scope]:
    """Most nodes that one group touches, and the smallest container that holds every group."""
    ordered = np.sort(nodes, axis=1)
    most = int((1 + np.count_nonzero(np.diff(ordered, axis=1), axis=1)).max())
    if most == 1:
        return 1, "node"
    domains = pool.domain_of[nodes]
    alone = nodes.min(axis=1) == nodes.max(axis=1)
    shared = (domains.min(axis=1) == domains.max(axis=1)) & (domains[:, 0] >= 0)
    return most, "domain" if bool((alone | shared).all()) else "cluster"


def _crossings(pool: Pool, groups: Ints, latency_s: float) -> Iterator[Crossing]:
    """What each kind of group crosses; equal kinds are reported once."""
    nodes = pool.node_of(groups)
    alone = nodes.min(axis=1) == nodes.max(axis=1)
    yield from _inside_nodes(pool, groups[alone], nodes[alone, 0], latency_s)
    groups, nodes = groups[~alone], nodes[~alone]
    if not len(groups):
        return
    domains = pool.domain_of[nodes]
    shared = (domains.min(axis=1) == domains.max(axis=1)) & (domains[:, 0] >= 0)
    shared &= ~_has_straggler(pool, groups, nodes)
    kinds = np.unique(pool.kind_of[nodes[shared]])
    rates = [_domain_gb_s(pool.kinds[kind]) for kind in kinds]
    if rates:
        yield Crossing(link=LinkClass.NVLINK, bandwidth=_least(rates), latency_s=latency_s)
    kinds = np.unique(pool.kind_of[nodes[~shared]])
    rates = [pool.kinds[kind].network_gb_s for kind in kinds]
    if rates:
        yield Crossing(link=LinkClass.NETWORK, bandwidth=_least(rates), latency_s=latency_s)


def _inside_nodes(pool: Pool, groups: Ints, nodes: Ints, latency_s: float) -> Iterator[Crossing]:
    if not len(groups):
        return
    positions = groups - pool.first_device[nodes][:, None]
    patterns = np.unique(np.column_stack([pool.kind_of[nodes], positions]), axis=0)
    for kind, *members in patterns.tolist():
        yield _worst_pair(pool.kinds[kind], members, latency_s)


def _worst_pair(kind: Inside, members: list[int], latency_s: float) -> Crossing:
    codes = {kind.matrix[i][j] for i in members for j in members if i != j}
    worst = max(codes, key=lambda code: (BADNESS[link_class(code)], -link_count(code)))
    return Crossing(
        link=link_class(worst),
        bandwidth=link_bandwidth(kind.product, worst, len(members)),
        latency_s=latency_s,
    )


def _has_straggler(pool: Pool, groups: Ints, nodes: Ints) -> npt.NDArray[np.bool_]:
    """Groups with a device that is cut off from the NVLink of its own domain."""
    result = np.zeros(len(groups), dtype=np.bool_)
    for number, kind in enumerate(pool.kinds):
        if kind.stragglers:
            positions = groups - pool.first_device[nodes]
            cut_off = (pool.kind_of[nodes] == number) & np.isin(positions, kind.stragglers)
            result |= cut_off.any(axis=1)
    return result


def _domain_gb_s(kind: Inside) -> float | None:
    product = find_product(kind.product)
    return None if product is None else product.nvlink_gb_s


def _least(rates: list[float | None]) -> float | None:
    known = [rate for rate in rates if rate is not None]
    return min(known) if len(known) == len(rates) else None
