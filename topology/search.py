"""Which axes share a mesh, a node, a domain or a fabric block: the choice of least cost.

Every axis is assigned the nearest container that holds each of its groups whole. If the groups of
axes A and B all lie inside nodes, so do the A x B sub-grids, for one can walk from any member to
any other along A and B without leaving the node. Hence a placement is described, as far as the
worst links go, by one container per axis, and a choice is possible exactly when blocks of the
product of the axes inside each container can be packed (`parctl.topology.packing`). The search
goes through all assignments, cheapest first, and takes the first that packs: with links alike
inside each container that is the optimum over all permutations of the ranks.

Axes of one container keep the order of the recipe, innermost next to `tp`; ties go to the
assignment that disturbs this order least, then to the nearer containers.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from parctl.topology.cost import (
    DOMAIN_LATENCY_S,
    NETWORK_LATENCY_S,
    NODE_LATENCY_S,
    NOTHING,
    TIER_LATENCY_S,
    Crossing,
    layout_seconds,
)
from parctl.topology.hard_rule import Inside
from parctl.topology.links import BADNESS, link_bandwidth, link_class, link_count
from parctl.topology.model import LinkClass
from parctl.topology.packing import is_contiguous, pack
from parctl.topology.pool import Ints, Pool
from parctl.topology.products import find_product
from parctl.topology.request import PP, TP, LayoutRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """An axis, or one of the two factors of an axis that is only partly inside something."""

    axis: str
    size: int
    in_ep: bool  # its ranks belong to one expert-parallel group
    one_mesh: bool = False  # the hard rule binds it: one full mesh or one NVLink domain


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """An assignment of containers to parts, and the devices that it puts into the mesh."""

    seconds: float
    levels: tuple[int, ...]  # by part; 0: full mesh, then as `Pool.containers`
    parts: tuple[Part, ...]  # innermost first
    devices: Ints  # device numbers, shaped by the axes of the request


def best_choice(
    pool: Pool, request: LayoutRequest, traffic: Mapping[str, float], *, with_stragglers: bool
) -> Choice | None:
    """Cheapest assignment that packs, or None when no assignment does."""
    for factors in _tp_factors(pool, request):
        parts = _parts(request, factors)
        choice = _cheapest(pool, request, parts, traffic, with_stragglers)
        if choice is not None:
            return choice
    return None


def _cheapest(
    pool: Pool,
    request: LayoutRequest,
    parts: tuple[Part, ...],
    traffic: Mapping[str, float],
    with_stragglers: bool,
) -> Choice | None:
    failed: set[tuple[int, ...]] = set()
    for seconds, levels in _assignments(pool, request, parts, traffic, with_stragglers):
        ratios = tuple(
            prod(part.size for part, own in zip(parts, levels, strict=True) if own == level)
            for level in range(len(pool.containers) + 1)
        )
        if ratios in failed:
            continue
        packed = pack(
            pool, ratios, request.world_size, tp=request.tp, with_stragglers=with_stragglers
        )
        if packed is None:
            failed.add(ratios)
            continue
        devices = _to_mesh(packed, parts, levels, request.axes)
        if request.linear and not is_contiguous(pool.node_of(devices.reshape(-1))):
            continue
        return Choice(seconds=seconds, levels=levels, parts=parts, devices=devices)
    return None


def _parts(request: LayoutRequest, tp_factors: tuple[int, ...]) -> tuple[Part, ...]:
    """Factors of the mesh, innermost first: tp, then the axes of the recipe from the inside out."""
    outer = [(a, n) for a, n in reversed(list(request.axes.items())) if a not in (TP, PP)]
    left, takes_tp = request.ep, prod(n for _, n in outer) % request.ep > 0
    by_axis: dict[str, list[Part]] = {}
    for axis, size in outer:
        inside = size if left % size == 0 or (takes_tp and left > 1) else left
        if left > 1 and size % inside == 0:
            by_axis[axis] = [
                Part(axis=axis, size=inside, in_ep=True),
                Part(axis=axis, size=size // inside, in_ep=False),
            ]
            left = max(1, left // inside)
        else:
            # ep divides neither way: all that is left of it may lie anywhere on this axis
            by_axis[axis] = [Part(axis=axis, size=size, in_ep=left > 1)]
    parts = [
        Part(axis=TP, size=size, in_ep=takes_tp, one_mesh=position == 0)
        for position, size in enumerate(tp_factors)
    ]
    for axis, size in reversed(list(request.axes.items())):
        parts += by_axis.get(axis, [Part(axis=axis, size=size, in_ep=False)] * (axis != TP))
    return tuple(part for part in parts if part.size > 1)


def _tp_factors(pool: Pool, request: LayoutRequest) -> list[tuple[int, ...]]:
    """Ways to build a tp group: whole, or of full meshes (large ones first) where it may cross."""
    if not request.allow_cross_node_tp:
        return [(request.tp,)]
    mesh = min(request.tp - 1, max(kind.largest_mesh for kind in pool.kinds))
    sizes = [size for size in range(mesh, 0, -1) if request.tp % size == 0]
    return [(request.tp,), *((size, request.tp // size) for size in sizes)]


def _assignments(
    pool: Pool,
    request: LayoutRequest,
    parts: Sequence[Part],
    traffic: Mapping[str, float],
    with_stragglers: bool,
) -> list[tuple[float, tuple[int, ...]]]:
    """All assignments whose blocks are no larger than their containers, cheapest first."""
    capacity = [max(kind.largest_mesh for kind in pool.kinds)]
    capacity += [
        pool.largest_container(container, with_stragglers=with_stragglers)
        for _, container in pool.containers
    ]
    distinct = _distinct_levels(pool, with_stragglers)
    tp_levels = _tp_levels(pool, request)
    options = [
        [level for level in distinct if not part.one_mesh or level in tp_levels] for part in parts
    ]
    cost = _LevelCost(pool, request, parts, traffic, with_stragglers)
    found = []
    for levels in _within_capacity(parts, options, capacity):
        found.append((float(f"{cost.seconds(levels):.9e}"), _inversions(levels), levels))
    return [(seconds, levels) for seconds, _, levels in sorted(found)]


def _within_capacity(
    parts: Sequence[Part], options: Sequence[Sequence[int]], capacity: Sequence[int]
) -> Iterator[tuple[int, ...]]:
    def extend(chosen: tuple[int, ...], room: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if len(chosen) == len(parts):
            yield chosen
            return
        size = parts[len(chosen)].size
        for level in options[len(chosen)]:
            # a part inside a level is inside every farther one too
            left = tuple(r // size if i >= level else r for i, r in enumerate(room))
            if min(left) > 0:
                yield from extend((*chosen, level), left)

    yield from extend((), tuple(capacity))


def _tp_levels(pool: Pool, request: LayoutRequest) -> set[int]:
    names = [name for name, _ in pool.containers]
    if "domain" not in names or request.strict_node:
        return {0}
    return {0, names.index("domain") + 1}


def _distinct_levels(pool: Pool, with_stragglers: bool) -> list[int]:
    """Levels that differ from the nearer ones: a fully meshed node is one level, not two."""
    whole = all(
        kind.largest_mesh == len(kind.usable) - (0 if with_stragglers else len(kind.stragglers))
        for kind in pool.kinds
    )
    levels = [0]
    for level, (_, container) in enumerate(pool.containers, start=1):
        if level == 1:
            if not whole:
                levels.append(1)
        elif not np.array_equal(container, pool.containers[level - 2][1]):
            levels.append(level)
    return levels


def _inversions(levels: Sequence[int]) -> int:
    """Pairs of parts that packing puts in another order than the recipe's."""
    return sum(a > b for i, a in enumerate(levels) for b in levels[i + 1 :])


class _LevelCost:
    """Cost of an assignment, from what a group at each level has to cross at worst."""

    def __init__(
        self,
        pool: Pool,
        request: LayoutRequest,
        parts: Sequence[Part],
        traffic: Mapping[str, float],
        with_stragglers: bool,
    ) -> None:
        self.sizes = {**request.axes, "ep": request.ep}
        self.traffic = traffic
        self.members = {
            axis: [i for i, part in enumerate(parts) if part.axis == axis] for axis in request.axes
        }
        self.members["ep"] = [i for i, part in enumerate(parts) if part.in_ep]
        names = [name for name, _ in pool.containers]
        self.crossings = {
            (axis, level): _crossing(pool, names, level, 2 if axis == PP else n, with_stragglers)
            for axis, n in self.sizes.items()
            if n > 1
            for level in range(len(names) + 1)
        }

    def seconds(self, levels: Sequence[int]) -> float:
        worst = {
            axis: self.crossings[axis, max(levels[i] for i in members)]
            for axis, members in self.members.items()
            if members and self.sizes[axis] > 1
        }
        return layout_seconds(self.traffic, self.sizes, worst)


def _crossing(
    pool: Pool, names: Sequence[str], level: int, size: int, with_stragglers: bool
) -> Crossing:
    if level <= 1:
        found = [_node_crossing(kind, level, size, with_stragglers) for kind in pool.kinds]
        return max(found, key=lambda c: (BADNESS[c.link], -(c.bandwidth or 0)))
    if names[level - 1] == "domain":
        products = [find_product(kind.product) for kind in pool.kinds]
        known = [p.nvlink_gb_s for p in products if p is not None and p.nvlink_gb_s is not None]
        return Crossing(
            link=LinkClass.NVLINK,
            bandwidth=min(known) if len(known) == len(products) else None,
            latency_s=DOMAIN_LATENCY_S,
        )
    rates = [kind.network_gb_s for kind in pool.kinds]
    known = [rate for rate in rates if rate is not None]
    near = names.index("domain") + 1 if "domain" in names else 1
    return Crossing(
        link=LinkClass.NETWORK,
        bandwidth=min(known) if len(known) == len(rates) else None,
        latency_s=NETWORK_LATENCY_S + TIER_LATENCY_S * (level - near),
    )


def _node_crossing(kind: Inside, level: int, size: int, with_stragglers: bool) -> Crossing:
    members = [i for i in kind.usable if with_stragglers or i not in kind.stragglers]
    codes = {kind.matrix[i][j] for i in members for j in members if i != j}
    if level == 0:
        codes = {code for code in codes if kind.joined(code)}
    if not codes:
        return NOTHING
    worst = max(codes, key=lambda code: (BADNESS[link_class(code)], -link_count(code)))
    return Crossing(
        link=link_class(worst),
        bandwidth=link_bandwidth(kind.product, worst, size),
        latency_s=NODE_LATENCY_S,
    )


def _to_mesh(
    packed: Ints, parts: Sequence[Part], levels: Sequence[int], axes: Mapping[str, int]
) -> Ints:
    """Reshape devices from packing order to the axes of the mesh."""
    order = sorted(range(len(parts)), key=lambda i: (levels[i], i), reverse=True)
    grid = packed.reshape([parts[i].size for i in order])
    # the outer factor of a split axis comes later in `parts`, which run from the inside out
    wanted = [i for axis in axes for i in reversed(range(len(parts))) if parts[i].axis == axis]
    return grid.transpose([order.index(i) for i in wanted]).reshape(tuple(axes.values()))
