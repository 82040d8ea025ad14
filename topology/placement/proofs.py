"""Proofs: for every axis, what the worst of its groups crosses, read off the finished layout.

Nothing here knows how the layout was found. Groups inside one node are looked up in that node's
link matrix, once per distinct pattern of positions; of groups that leave the node only the domain
and the network matter. Pipeline stages talk to their neighbours alone, so the links of `pp` are
those between consecutive stages; of every other axis the worst pair of a group counts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from parctl.topology.layout import Scope
from parctl.topology.model import LinkClass
from parctl.topology.placement.cost import (
    NOTHING,
    Crossing,
    axis_seconds,
    domain_crossing,
    link_crossing,
    tier_crossing,
)
from parctl.topology.placement.experts import expert_grid
from parctl.topology.placement.hard_rule import Inside
from parctl.topology.placement.pool import Ints, Pool
from parctl.topology.placement.request import PP, LayoutRequest

# axes of the expert view that repeat others: their traffic is not counted twice
EXPERT_VIEW = ("edp", "etp")


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisFacts:
    """The worst that the groups of one axis cross, before it is put in words."""

    axis: str
    size: int
    groups: int
    scope: Scope
    nodes_per_group: int
    crossing: Crossing  # the slowest
    crossings: tuple[Crossing, ...]  # all different ones
    within: str | None = None  # the fabric tier that holds every group that leaves its domain
    on_rails: bool = False  # groups that cross the network keep to NICs of one rail


def facts_of(
    pool: Pool, request: LayoutRequest, devices: Ints, experts: Mapping[str, int] | None
) -> list[AxisFacts]:
    """Facts of every mesh axis, then of the expert view's own axes."""
    views = [(request.axes, devices)]
    if experts is not None:
        views.append((experts, expert_grid(request.axes, experts, devices)))
    found: dict[str, AxisFacts] = {}
    for axes, grid in views:
        for position, axis in enumerate(axes):
            if axis not in found:
                groups = np.moveaxis(grid, position, -1).reshape(-1, grid.shape[position])
                found[axis] = axis_facts(pool, axis, groups, neighbours=axis == PP)
    return list(found.values())


def seconds_of(facts: Sequence[AxisFacts], traffic: Mapping[str, float]) -> float:
    """What a finished layout costs by its facts."""
    return sum(
        max(axis_seconds(traffic.get(fact.axis, 0.0), fact.size, c) for c in fact.crossings)
        for fact in facts
        if fact.size > 1 and fact.axis not in EXPERT_VIEW
    )


def axis_facts(pool: Pool, axis: str, groups: Ints, *, neighbours: bool) -> AxisFacts:
    """Look at all groups (rows of device numbers) of one axis."""
    count, size = groups.shape
    if size == 1:
        return AxisFacts(
            axis=axis,
            size=1,
            groups=count,
            scope="device",
            nodes_per_group=1,
            crossing=NOTHING,
            crossings=(),
        )
    nodes = pool.node_of(groups)
    spread, scope = _spread(pool, nodes)
    within, depth = _tier(pool, nodes) if scope == "cluster" else (None, 0)
    pairs = groups
    if neighbours:
        pairs = np.stack([groups[:, :-1].reshape(-1), groups[:, 1:].reshape(-1)], axis=1)
    found = tuple(
        tier_crossing(crossing, depth) if crossing.link is LinkClass.NETWORK else crossing
        for crossing in _crossings(pool, pairs)
    )
    return AxisFacts(
        axis=axis,
        size=size,
        groups=count,
        scope=scope,
        nodes_per_group=spread,
        crossing=max(found, key=lambda crossing: crossing.badness),
        crossings=found,
        within=within,
        on_rails=scope == "cluster" and _on_rails(pool, pairs),
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


def _tier(pool: Pool, nodes: Ints) -> tuple[str | None, int]:
    """The nearest fabric tier that holds every group, and how many are nearer; None: none does."""
    place = np.empty(len(pool.nodes), dtype=np.int64)
    place[pool.walk] = np.arange(len(pool.walk))
    for container in pool.containers:
        if container.is_network and container.rate is None:
            labels = container.labels[place[nodes]]
            if bool((labels.min(axis=1) == labels.max(axis=1)).all()):
                return (container.name if container.name != "cluster" else None), container.depth
    raise AssertionError("the cluster holds everything")


def _on_rails(pool: Pool, groups: Ints) -> bool:
    """Whether in every group each node brings the same rails, so that like meets like."""
    groups = np.sort(groups, axis=1)
    nodes = pool.node_of(groups)
    away = nodes[:, 0] != nodes[:, -1]
    groups, nodes = groups[away], nodes[away]
    spread = 1 + np.count_nonzero(np.diff(nodes, axis=1), axis=1)
    if (spread != spread[0]).any() or groups.shape[1] % spread[0]:
        return False
    by_node = (len(groups), int(spread[0]), -1)
    counted = nodes.reshape(by_node)
    if (counted != counted[:, :, :1]).any():
        return False
    width = max(len(kind.hardware.devices) for kind in pool.kinds)
    table = np.array([kind.rails + (-1,) * (width - len(kind.rails)) for kind in pool.kinds])
    rails = table[pool.kind_of[nodes], groups - pool.first_device[nodes]].reshape(by_node)
    return bool((rails >= 0).all() and (rails == rails[:, :1]).all())


def _crossings(pool: Pool, groups: Ints) -> Iterator[Crossing]:
    """What each kind of group crosses; equal kinds are reported once."""
    nodes = pool.node_of(groups)
    alone = nodes.min(axis=1) == nodes.max(axis=1)
    yield from _inside_nodes(pool, groups[alone], nodes[alone, 0])
    groups, nodes = groups[~alone], nodes[~alone]
    if not len(groups):
        return
    domains = pool.domain_of[nodes]
    shared = (domains.min(axis=1) == domains.max(axis=1)) & (domains[:, 0] >= 0)
    shared &= ~_has_straggler(pool, groups, nodes)
    for kind in np.unique(pool.kind_of[nodes[shared]]):
        yield domain_crossing(pool.kinds[kind].nvlink_gb_s)
    for kind in np.unique(pool.kind_of[nodes[~shared]]):
        yield pool.kinds[kind].network_crossing


def _inside_nodes(pool: Pool, groups: Ints, nodes: Ints) -> Iterator[Crossing]:
    if not len(groups):
        return
    positions = groups - pool.first_device[nodes][:, None]
    patterns = np.unique(np.column_stack([pool.kind_of[nodes], positions]), axis=0)
    for kind, *members in patterns.tolist():
        yield _worst_pair(pool.kinds[kind], members)


def _worst_pair(kind: Inside, members: list[int]) -> Crossing:
    codes = {kind.matrix[i][j] for i in members for j in members if i != j}
    found = (link_crossing(kind.product, code, len(members)) for code in codes)
    return max(found, key=lambda crossing: crossing.badness)


def _has_straggler(pool: Pool, groups: Ints, nodes: Ints) -> npt.NDArray[np.bool_]:
    """Groups with a device that is cut off from the NVLink of its own domain."""
    result = np.zeros(len(groups), dtype=np.bool_)
    for number, kind in enumerate(pool.kinds):
        if kind.stragglers:
            positions = groups - pool.first_device[nodes]
            cut_off = (pool.kind_of[nodes] == number) & np.isin(positions, kind.stragglers)
            result |= cut_off.any(axis=1)
    return result
