"""Which axes share a mesh, a node, a domain or a fabric block: rules first, then least cost.

Every family of groups (`parts`) is kept at a level (`levels`): the links of a node, or a container
beyond it. If the groups of axes A and B all lie inside nodes, so do the A x B sub-grids, for one
can walk from any member to any other along A and B without leaving the node. Hence a placement is
described, as far as the worst links go, by one level per family, and a choice of levels is possible
exactly when the grids and blocks that it asks for can be packed (`packing`). The rules are tried in
their order, strictest first:

1. tp in one mesh or NVLink domain, in several only where the recipe permits it; a group that
   leaves its nodes fills them;
2. ep stays in the NVLink domain while it can;
3. fsdp fills what tp (and cp, where that costs less) leaves of the domain and of the node;
   no replica or pipeline stage lives inside a node while fsdp crosses nodes.

Under the first rules that can be fulfilled all choices of levels are tried, cheapest first, and the
first that packs is taken: the optimum over all permutations of the ranks under these rules, where
no link inside a node is slower than leaving it and domains are alike inside. Parts of one container
keep the order of the recipe, innermost next to `tp`; ties go to the choice that disturbs this order
least, then to the nearer levels.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import pairwise, product
from math import prod

import numpy as np

from parctl.topology.placement.grids import Rule
from parctl.topology.placement.levels import Landscape, Level
from parctl.topology.placement.packing import Arrangement, Packer, is_contiguous
from parctl.topology.placement.parts import (
    FSDP_DOMAIN,
    FSDP_NODE,
    TP_MESH,
    Fill,
    Part,
    carve,
    fills,
    replicates,
)
from parctl.topology.placement.pool import Ints, Pool
from parctl.topology.placement.request import CP, EP, FSDP, PP, TP, LayoutRequest

# An arrangement may pack and yet miss a required node or the order of a script. The search for
# another one ends after so many devices have been put in place in vain: about two seconds.
MAX_TRIED_DEVICES = 2_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Levels for all families, and the devices that they put into the mesh."""

    seconds: float
    devices: Ints  # device numbers, shaped by the axes of the request
    fill: Fill | None  # how far fsdp fills nodes and domains; None: no fsdp, or a script
    ep_inside: bool  # ep stays in the NVLink domain


def best_choice(
    pool: Pool, request: LayoutRequest, traffic: Mapping[str, float], *, with_stragglers: bool
) -> Choice | None:
    """The cheapest placement under the strictest rules that can be fulfilled, or None."""
    search = _Search(pool, request, traffic, with_stragglers)
    contended = request.axes.get(CP, 1) > 1 and request.axes.get(FSDP, 1) > 1
    for mesh in search.mesh_sizes():
        for ep_inside in (True, False) if request.ep > 1 else (False,):
            near = frozenset({EP}) if ep_inside else frozenset()
            tried = [near | {CP}, near] if contended else [near]
            found = [choice for inside in tried if (choice := search.filled(mesh, inside))]
            if found:
                return min(found, key=lambda choice: choice.seconds)
    return None


class _Search:
    """Everything that stays the same while rules and levels are tried."""

    def __init__(
        self,
        pool: Pool,
        request: LayoutRequest,
        traffic: Mapping[str, float],
        with_stragglers: bool,
    ) -> None:
        self.pool = pool
        self.request = request
        self.tried_devices = 0
        self.packer = Packer(pool, with_stragglers=with_stragglers)
        self.landscape = Landscape(pool, with_stragglers=with_stragglers)
        self.room = [
            pool.largest_container(container, with_stragglers=with_stragglers)
            for container in pool.containers
        ]
        sizes = {**request.axes, EP: request.ep}
        self.levels = {
            family: self.landscape.levels(
                size,
                traffic.get(family, 0.0),
                neighbours=family == PP,
                rule=family == TP and not request.allow_cross_node_tp,
            )
            for family, size in sizes.items()
            if size > 1
        }
        # a group with a device that has no NVLink is no mesh of its domain
        cut_off = with_stragglers and any(kind.stragglers for kind in pool.kinds)
        self.tp_in_domain = bool(pool.near) and not request.strict_node and not cut_off

    def mesh_sizes(self) -> list[int]:
        """Sizes of the full meshes that a tp group may be made of: itself, or large ones first."""
        tp = self.request.tp
        if not self.request.allow_cross_node_tp:
            return [tp]
        largest = max(kind.largest_mesh for kind in self.pool.kinds)
        if self.tp_in_domain:
            largest = max(largest, self.room[self.pool.near])
        return [size for size in range(min(tp, largest), 0, -1) if tp % size == 0]

    def filled(self, mesh: int, inside: frozenset[str]) -> Choice | None:
        """The cheapest choice with nodes as full of fsdp as can be. `inside`: families that must
        not leave the domain."""
        for fill in fills(self.request, has_domains=bool(self.pool.near)):
            parts = carve(self.request, mesh, fill)
            if parts is None:
                continue
            options = {
                family: self._options(family, fill, inside)
                for family in sorted({f for part in parts for f in part.families})
            }
            if not all(options.values()) or not self._may_fit(parts, options):
                continue
            if (choice := self._cheapest(parts, options, fill, EP in inside)) is not None:
                return choice
        return None

    def _options(self, family: str, fill: Fill | None, inside: frozenset[str]) -> list[Level]:
        """Levels that the rules leave to a family, cheapest first."""
        near = self.pool.near
        domain = [Level(container=near, codes=(), seconds=0.0)] if near else []
        if family == FSDP_NODE:
            return [self.landscape.any_link]
        if family == FSDP_DOMAIN:
            return domain or [self.landscape.any_link]
        if family == TP_MESH:
            return [self.landscape.mesh_link, *(domain if self.tp_in_domain else [])]
        levels = self.levels[family]
        if family == TP and not self.request.allow_cross_node_tp:
            limit = near if self.tp_in_domain else 0
            levels = [level for level in levels if level.container <= limit]
        elif family in inside:
            levels = [level for level in levels if level.container <= near]
        elif fill is not None and family == FSDP:
            limit = len(self.room) if fill.crosses_domains else near if fill.crosses_nodes else 0
            levels = [level for level in levels if level.container <= limit]
        elif fill is not None and replicates(family) and family != EP:
            beyond = near if fill.crosses_domains else 0 if fill.crosses_nodes else -1
            levels = [level for level in levels if level.container > beyond]
        return sorted(levels, key=lambda level: level.seconds)

    def _may_fit(self, parts: Sequence[Part], options: Mapping[str, list[Level]]) -> bool:
        """Whether the loosest levels pack: if not, no others do."""
        loosest = [
            {max(of, key=_looseness), max(_inside_nodes(family, of) or of, key=_looseness)}
            for family, of in options.items()
        ]
        return any(
            self._packs(parts, dict(zip(options, levels, strict=True))) is not None
            for levels in product(*loosest)
        )

    def _cheapest(
        self,
        parts: Sequence[Part],
        options: Mapping[str, list[Level]],
        fill: Fill | None,
        ep_inside: bool,
    ) -> Choice | None:
        for seconds, levels in _cheapest_first(parts, options):
            if self.tried_devices > MAX_TRIED_DEVICES:
                break
            arrangement = self._packs(parts, levels)
            if arrangement is None:
                continue
            self.tried_devices += self.request.world_size
            packed = self.packer.pack(arrangement, self.request.world_size)
            devices = self._to_mesh(packed, parts, levels)
            nodes = self.pool.node_of(devices.reshape(-1))
            if self.request.linear and not is_contiguous(nodes):
                continue
            if not np.isin(self.pool.required, nodes).all():
                continue
            return Choice(seconds=seconds, devices=devices, fill=fill, ep_inside=ep_inside)
        return None

    def _packs(self, parts: Sequence[Part], levels: Mapping[str, Level]) -> Arrangement | None:
        """How to pack these levels, or None when the pool is too small for them."""
        held = _containers(parts, levels)
        used = sorted(set(held))
        if not all(self.pool.nests[inner, outer] for inner, outer in pairwise(used)):
            return None
        if _tp_is_split(levels):
            return None
        for index in used:
            inside = (part.size for part, own in zip(parts, held, strict=True) if own <= index)
            if prod(inside) > self.room[index]:
                return None
        grid = [i for i in reversed(range(len(parts))) if held[i] == 0]
        arrangement = Arrangement(
            sizes=tuple(parts[i].size for i in grid),
            rules=tuple(
                _rules(parts, grid, levels, number) for number in range(len(self.pool.kinds))
            ),
            steps=tuple(
                (held[i], parts[i].size)
                for i in sorted(range(len(parts)), key=lambda i: (held[i], i))
                if held[i]
            ),
            meshes_only=any(
                levels[family].container > 0
                for family in (TP_MESH, TP)
                if family in levels and not (family == TP and self.request.allow_cross_node_tp)
            ),
        )
        needed = self.request.world_size // prod(part.size for part in parts)
        return arrangement if self.packer.count(arrangement) >= needed else None

    def _to_mesh(self, packed: Ints, parts: Sequence[Part], levels: Mapping[str, Level]) -> Ints:
        """Reshape devices from packing order to the axes of the mesh."""
        axes = self.request.axes
        held = _containers(parts, levels)
        order = sorted(range(len(parts)), key=lambda i: (held[i], i), reverse=True)
        grid = packed.reshape([parts[i].size for i in order])
        # the outer factor of a cut axis comes later in `parts`, which run from the inside out
        wanted = [i for axis in axes for i in reversed(range(len(parts))) if parts[i].axis == axis]
        return grid.transpose([order.index(i) for i in wanted]).reshape(tuple(axes.values()))


def _containers(parts: Sequence[Part], levels: Mapping[str, Level]) -> list[int]:
    """The container of every part: the nearest of its families'."""
    return [min(levels[family].container for family in part.families) for part in parts]


def _tp_is_split(levels: Mapping[str, Level]) -> bool:
    """Whether a tp group leaves its nodes although something else lives in them."""
    own = {family: levels[family] for family in (TP_MESH, TP) if family in levels}
    if not own or next(iter(own.values())).container == 0:
        return False
    return any(level.container == 0 for f, level in levels.items() if f not in own)


def _rules(
    parts: Sequence[Part], grid: Sequence[int], levels: Mapping[str, Level], kind: int
) -> tuple[Rule, ...]:
    """What a grid inside a node must obey: one rule per family that is kept there."""
    found = []
    for family, level in levels.items():
        members = tuple(place for place, i in enumerate(grid) if family in parts[i].families)
        if level.container == 0 and members:
            found.append(Rule(parts=members, codes=level.codes[kind], neighbours=family == PP))
    return tuple(found)


def _cheapest_first(
    parts: Sequence[Part], options: Mapping[str, list[Level]]
) -> Iterator[tuple[float, dict[str, Level]]]:
    """All choices of one level per family by cost; among equals those nearest to the recipe."""
    families = list(options)

    def cost(chosen: tuple[int, ...]) -> float:
        total = sum(options[f][i].seconds for f, i in zip(families, chosen, strict=True))
        return float(f"{total:.9e}")  # sums that differ by rounding are ties

    start = (0,) * len(families)
    heap = [(cost(start), start)]
    seen = {start}
    while heap:
        seconds = heap[0][0]
        equal = []
        while heap and heap[0][0] == seconds:
            chosen = heappop(heap)[1]
            equal.append(chosen)
            for position, index in enumerate(chosen):
                if index + 1 < len(options[families[position]]):
                    further = (*chosen[:position], index + 1, *chosen[position + 1 :])
                    if further not in seen:
                        seen.add(further)
                        heappush(heap, (cost(further), further))
        named = [
            {f: options[f][i] for f, i in zip(families, chosen, strict=True)} for chosen in equal
        ]
        for levels in sorted(named, key=lambda levels: _ties(parts, levels)):
            yield seconds, levels


def _ties(parts: Sequence[Part], levels: Mapping[str, Level]) -> tuple[int, list[int]]:
    """Pairs of parts that packing puts in another order than the recipe's, then the levels."""
    held = _containers(parts, levels)
    inversions = sum(a > b for i, a in enumerate(held) for b in held[i + 1 :])
    return inversions, held


def _looseness(level: Level) -> tuple[int, int]:
    return level.container, sum(map(len, level.codes))


def _inside_nodes(family: str, levels: Sequence[Level]) -> list[Level]:
    """For tp its levels inside a node: they may pack where its domain holds only full meshes."""
    return [level for level in levels if level.container == 0] if family in (TP, TP_MESH) else []
