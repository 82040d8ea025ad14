"""Lay grids of ranks into one node: as many disjoint ones as its links allow.

The parts of the mesh that lie inside a node form a grid. Each `Rule` says which links the members
of one kind of group may use: with sizes (2, 2) and a rule on the last part that allows NV2 only,
every row of the grid must be an NV2 pair, and the columns may be joined by anything. On a DGX-1V::

    0 = 3      = NV2 (rows)           0 3
    |   |                             1 2     one grid of (2, 2): rows 0-3 and 1-2
    1 = 2

Allowed links that divide the node into nested sets (PCIe switches in NUMA nodes, bridged pairs,
NVSwitch) are filled set by set, which is optimal. Anything stranger (a cube mesh, dead links) is
searched exactly up to `MAX_EXACT` devices and greedily above that. Device sets are bit masks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import prod

import numpy as np

from parctl.topology.cliques import Matrix, pack_meshes

MAX_EXACT = 8
# steps of the greedy search before it gives up on one more grid: milliseconds
MAX_STEPS = 20_000

Grids = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Members of a group differ along `parts` only and may be joined by `codes`."""

    parts: tuple[int, ...]  # positions in the sizes of the grid
    codes: frozenset[str]
    neighbours: bool = False  # only consecutive members talk (pipeline stages)


def pack_grids(
    matrix: Matrix, positions: Sequence[int], sizes: Sequence[int], rules: Sequence[Rule]
) -> Grids:
    """Disjoint grids, each as positions in row-major order of `sizes`."""
    present = {matrix[i][j] for i in positions for j in positions if i != j}
    binding = [rule for rule in rules if rule.parts and not present <= rule.codes]
    bound = sorted({part for rule in binding for part in rule.parts})
    if not bound:
        return _chunks(positions, prod(sizes))
    # parts that no rule binds only group what the others make
    inner = _bound_grids(
        matrix,
        positions,
        [sizes[part] for part in bound],
        [
            Rule(
                parts=tuple(bound.index(part) for part in rule.parts),
                codes=rule.codes,
                neighbours=rule.neighbours,
            )
            for rule in binding
        ],
    )
    free = [part for part in range(len(sizes)) if part not in bound]
    groups = _chunks(range(len(inner)), prod(sizes[part] for part in free))
    order = [*free, *bound]
    return tuple(
        tuple(
            np.array([inner[i] for i in group])
            .reshape([sizes[part] for part in order])
            .transpose([order.index(part) for part in range(len(sizes))])
            .reshape(-1)
            .tolist()
        )
        for group in groups
    )


def _chunks(items: Sequence[int], size: int) -> Grids:
    return tuple(tuple(items[i : i + size]) for i in range(0, len(items) - size + 1, size))


def _bound_grids(
    matrix: Matrix, positions: Sequence[int], sizes: Sequence[int], rules: Sequence[Rule]
) -> Grids:
    joined = [_neighbours(matrix, positions, rule.codes) for rule in rules]
    nested = _nested_sets(positions, joined)
    if nested is not None:
        return _fill_sets(positions, sizes, rules, nested)
    if len(rules) == 1 and len(sizes) == 1 and not rules[0].neighbours:
        return pack_meshes(matrix, sizes[0], rules[0].codes.__contains__, positions)
    search = _Search(positions, sizes, rules, joined)
    return search.exact() if len(positions) <= MAX_EXACT else search.greedy()


def _neighbours(matrix: Matrix, positions: Sequence[int], codes: frozenset[str]) -> dict[int, int]:
    """Bit mask of the devices joined with each device; a link must be seen from both ends."""
    return {
        i: sum(
            1 << j for j in positions if i != j and matrix[i][j] in codes and matrix[j][i] in codes
        )
        for i in positions
    }


def _nested_sets(
    positions: Sequence[int], joined: Sequence[dict[int, int]]
) -> list[dict[int, int]] | None:
    """For every rule the set (a mask) of each device, if the rules divide the node into sets and
    of two rules one always divides the other's sets further. None: they do not."""
    sets = [{i: mask | 1 << i for i, mask in neighbours.items()} for neighbours in joined]
    for masks in sets:
        if any(masks[j] != mask for mask in masks.values() for j in _members(mask)):
            return None
    for one, other in combinations(sets, 2):
        finer = all(one[i] & ~other[i] == 0 for i in positions)
        if not finer and not all(other[i] & ~one[i] == 0 for i in positions):
            return None
    return sets


def _fill_sets(
    positions: Sequence[int],
    sizes: Sequence[int],
    rules: Sequence[Rule],
    sets: Sequence[dict[int, int]],
) -> Grids:
    """Group parts into blocks, the most closely bound first, within the sets of their rules."""
    width = [sum(mask.bit_count() for mask in masks.values()) for masks in sets]
    tightest = [
        min((r for r, rule in enumerate(rules) if part in rule.parts), key=width.__getitem__)
        for part in range(len(sizes))
    ]
    order = sorted(range(len(sizes)), key=lambda part: (width[tightest[part]], -part))
    blocks: list[tuple[int, ...]] = [(i,) for i in positions]
    for part in order:
        by_set: dict[int, list[tuple[int, ...]]] = {}
        for block in blocks:
            by_set.setdefault(sets[tightest[part]][block[0]], []).append(block)
        blocks = [
            tuple(i for block in members[start : start + sizes[part]] for i in block)
            for members in by_set.values()
            for start in range(0, len(members) - sizes[part] + 1, sizes[part])
        ]
    # the part grouped last is outermost in a block
    built = list(reversed(order))
    rank = {position: i for i, position in enumerate(positions)}
    grids = (
        np.array(block)
        .reshape([sizes[part] for part in built])
        .transpose([built.index(part) for part in range(len(sizes))])
        .reshape(-1)
        .tolist()
        for block in blocks
    )
    return tuple(sorted(map(tuple, grids), key=lambda grid: min(map(rank.__getitem__, grid))))


class _Search:
    """Embed grids cell by cell; every cell must be joined as the rules ask with earlier ones."""

    def __init__(
        self,
        positions: Sequence[int],
        sizes: Sequence[int],
        rules: Sequence[Rule],
        joined: Sequence[dict[int, int]],
    ) -> None:
        self.everything = sum(1 << i for i in positions)
        self.size = prod(sizes)
        self.steps = 0
        cells = np.stack(np.unravel_index(np.arange(self.size), tuple(sizes)), axis=1)
        # for every cell: (earlier cell, neighbours that a rule allows)
        self.needs: list[list[tuple[int, dict[int, int]]]] = [
            [
                (earlier, neighbours)
                for earlier in range(cell)
                for rule, neighbours in zip(rules, joined, strict=True)
                if _bound_by(rule, (cells[cell] - cells[earlier]).tolist())
            ]
            for cell in range(self.size)
        ]

    def exact(self) -> Grids:
        """Most disjoint grids: the lowest device left joins a grid, or stays out."""
        best_of: dict[int, Grids] = {}

        def search(rest: int) -> Grids:
            bound = rest.bit_count() // self.size
            if bound == 0:
                return ()
            if rest in best_of:
                return best_of[rest]
            lowest = (rest & -rest).bit_length() - 1
            others = rest & ~(1 << lowest)
            best: Grids = ()
            for chosen in combinations(_members(others), self.size - 1):
                mask = 1 << lowest | sum(1 << i for i in chosen)
                if grid := self._embed(mask, limit=None):
                    found = (grid, *search(rest & ~mask))
                    best = max(best, found, key=len)
                if len(best) == bound:
                    break
            else:
                best = max(best, search(others), key=len)
            best_of[rest] = best
            return best

        return search(self.everything)

    def greedy(self) -> Grids:
        """One grid after the other, as far as they are found."""
        grids: list[tuple[int, ...]] = []
        rest = self.everything
        while rest.bit_count() >= self.size and (grid := self._embed(rest, limit=MAX_STEPS)):
            grids.append(grid)
            rest &= ~sum(1 << i for i in grid)
        return tuple(grids)

    def _embed(self, mask: int, *, limit: int | None) -> tuple[int, ...]:
        """A grid of devices of `mask`, the lowest by cells; () when there is none."""
        self.steps = 0

        def place(cells: tuple[int, ...], free: int) -> tuple[int, ...]:
            if len(cells) == self.size:
                return cells
            candidates = free
            for earlier, neighbours in self.needs[len(cells)]:
                candidates &= neighbours[cells[earlier]]
            for i in _members(candidates):
                self.steps += 1
                if limit is not None and self.steps > limit:
                    return ()
                if found := place((*cells, i), free & ~(1 << i)):
                    return found
            return ()

        return place((), mask)


def _bound_by(rule: Rule, difference: Sequence[int]) -> bool:
    """Whether two cells with this difference of coordinates are members of one group."""
    if any(step and part not in rule.parts for part, step in enumerate(difference)):
        return False
    return not rule.neighbours or sum(map(abs, difference)) == 1


def _members(mask: int) -> Iterator[int]:
    while mask:
        yield (mask & -mask).bit_length() - 1
        mask &= mask - 1
