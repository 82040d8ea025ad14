"""How near the groups of a family may be kept, and what each choice costs.

Levels run from near to far::

    inside a node   links of one quality and better: NV2, then NV1, then PIX, ..., then any
    beyond it       the NVLink domain, the fabric tiers, the cluster (`Pool.containers`)

A family that is kept at a level crosses at worst what the level allows. Levels that cost a family
the same are one level, the loosest, for that is easiest to fulfil.
"""

from dataclasses import dataclass
from functools import cached_property

from parctl.topology.placement.cost import (
    Crossing,
    axis_seconds,
    domain_crossing,
    link_crossing,
    tier_crossing,
)
from parctl.topology.placement.pool import Container, Pool

Codes = tuple[frozenset[str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    container: int  # index in `Pool.containers`; 0: inside a node
    codes: Codes  # by kind of node: links that may be used there; empty beyond the node
    seconds: float  # what the traffic of the family costs there


class Landscape:
    """The levels of one pool."""

    def __init__(self, pool: Pool, *, with_stragglers: bool) -> None:
        self.pool = pool
        self.with_stragglers = with_stragglers

    def levels(self, size: int, volume: float, *, neighbours: bool, rule: bool) -> list[Level]:
        """Levels of a family of groups of `size`, near to far. `rule`: only links that may join
        the members of a tp group."""
        group = 2 if neighbours else size
        levels = self._node_levels(size, group, volume, rule=rule)
        for index in self._far:
            crossings = self._crossings(self.pool.containers[index], group)
            seconds = max(axis_seconds(volume, size, crossing) for crossing in crossings)
            levels.append(Level(container=index, codes=(), seconds=seconds))
        return levels

    @cached_property
    def any_link(self) -> Level:
        """Anywhere inside a node, at no cost: for families that only bind."""
        return Level(container=0, codes=self._codes(rule=False), seconds=0.0)

    @cached_property
    def mesh_link(self) -> Level:
        """Inside a node, joined by links that a tp group may use."""
        return Level(container=0, codes=self._codes(rule=True), seconds=0.0)

    def _codes(self, *, rule: bool) -> Codes:
        result = []
        for kind in self.pool.kinds:
            members = kind.members(self.with_stragglers)
            present = {kind.matrix[i][j] for i in members for j in members if i != j}
            result.append(frozenset(c for c in present if not rule or kind.joined(c)))
        return tuple(result)

    def _node_levels(self, size: int, group: int, volume: float, *, rule: bool) -> list[Level]:
        """Links of equal cost make one level together with all cheaper ones."""
        by_kind = [
            {
                code: axis_seconds(volume, size, link_crossing(kind.product, code, group))
                for code in codes
            }
            for kind, codes in zip(self.pool.kinds, self._codes(rule=rule), strict=True)
        ]
        return [
            Level(
                container=0,
                codes=tuple(
                    frozenset(code for code, cost in codes.items() if cost <= seconds)
                    for codes in by_kind
                ),
                seconds=seconds,
            )
            for seconds in sorted({cost for codes in by_kind for cost in codes.values()})
        ]

    @cached_property
    def _far(self) -> list[int]:
        """Containers beyond the node; one that is the same as a nearer one is no level."""
        pool = self.pool
        return [
            index
            for index in range(1, len(pool.containers))
            if not any(pool.nests[index, near] for near in range(index))
        ]

    def _crossings(self, container: Container, size: int) -> list[Crossing]:
        """What groups may have to cross that are kept in a container beyond the node."""
        pool = self.pool
        if container.is_network:
            least = container.rate or 0.0
            slow = {n for n, k in enumerate(pool.kinds) if k.network_crossing.rate < least}
            # nodes that are too slow for it must keep their groups to themselves
            return self._inside(slow, size) + [
                tier_crossing(kind.network_crossing, container.depth)
                for number, kind in enumerate(pool.kinds)
                if number not in slow
            ]
        if self.with_stragglers and any(kind.stragglers for kind in pool.kinds):
            # a device without NVLink reaches the rest of its domain over the network
            return [kind.network_crossing for kind in pool.kinds]
        return self._inside(set(pool.kind_of[pool.domain_of < 0].tolist()), size) + [
            domain_crossing(pool.kinds[number].nvlink_gb_s)
            for number in set(pool.kind_of[pool.domain_of >= 0].tolist())
        ]

    def _inside(self, kinds: set[int], size: int) -> list[Crossing]:
        return [
            link_crossing(self.pool.kinds[number].product, code, size)
            for number, codes in enumerate(self._codes(rule=False))
            for code in sorted(codes)
            if number in kinds
        ]
