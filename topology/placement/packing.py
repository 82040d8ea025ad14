"""Pack blocks of ranks into containers: grids into nodes, nodes into domains, domains into tiers.

A step `(container, ratio)` groups `ratio` blocks of the step before into one block that lies in
one container. All blocks of a step have one size, so a container that holds n of the smaller ones
holds exactly n // ratio of the larger ones: taking them in order is optimal, and what is left over
in a container stays unused. Where a step goes far, as many of its blocks as can be are still made
in nearer fabric blocks, and only their leftovers are joined across. Everything is array arithmetic
over blocks, never over pairs.
"""

from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from parctl.topology.placement.grids import Grids, Rule, pack_grids
from parctl.topology.placement.pool import Ints, Pool


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """What has to be packed, innermost first: a grid in a node, then its groups."""

    sizes: tuple[int, ...]  # of the grid in a node, outermost first; empty: single devices
    rules: tuple[tuple[Rule, ...], ...]  # by kind of node
    steps: tuple[tuple[int, int], ...]  # (index of the container, ratio) by part, near to far
    meshes_only: bool = False  # nodes that are no full mesh take no part


class Packer:
    """Packs arrangements into one pool, remembering what a node of each kind can hold."""

    def __init__(self, pool: Pool, *, with_stragglers: bool) -> None:
        self.pool = pool
        self.with_stragglers = with_stragglers
        self._grids: dict[tuple[int, tuple[int, ...], tuple[Rule, ...]], Grids] = {}
        self._counts: dict[Arrangement, int] = {}

    def count(self, arrangement: Arrangement) -> int:
        """How many of the largest blocks the pool holds."""
        if arrangement not in self._counts:
            self._counts[arrangement] = self._count(arrangement)
        return self._counts[arrangement]

    def _count(self, arrangement: Arrangement) -> int:
        pool = self.pool
        per_kind = np.array([len(grids) for grids in self._tables(arrangement)], dtype=np.int64)
        counts = per_kind[pool.kind_of[pool.walk]]
        place = np.arange(len(counts), dtype=np.int64)
        for index, ratio in arrangement.steps:
            labels = pool.containers[index].labels[place]
            size = int(labels.max(initial=0)) + 1
            sums = np.bincount(labels, weights=counts, minlength=size).astype(np.int64)
            first = np.zeros(size, dtype=np.int64)
            first[labels] = place
            held = np.unique(labels)
            counts, place = sums[held] // ratio, first[held]
        return int(counts.sum())

    def pack(self, arrangement: Arrangement, total: int) -> Ints:
        """The first `total` device numbers in packing order, innermost blocks together."""
        blocks, place = self._node_blocks(arrangement)
        for index, ratio in arrangement.steps:
            blocks, place = self._step(blocks, place, index, ratio)
        return blocks.reshape(-1)[:total]

    def _step(self, blocks: Ints, place: Ints, index: int, ratio: int) -> tuple[Ints, Ints]:
        """Group `ratio` blocks inside one container, in a nearer one where that is possible."""
        pool = self.pool
        nearer = [
            near
            for near in range(index)
            if pool.containers[near].is_network and pool.nests[near, index]
        ]
        made, places = [], []
        for container in (*nearer, index):
            labels = pool.containers[container].labels[place]
            order, kept = _whole_groups(labels, ratio)
            made.append(blocks[order[kept]].reshape(-1, blocks.shape[1] * ratio))
            places.append(place[order[kept]][::ratio])
            left = np.sort(order[~kept])
            blocks, place = blocks[left], place[left]
        joined = np.concatenate(places)
        order = np.argsort(joined, kind="stable")
        return np.concatenate(made)[order], joined[order]

    def _tables(self, arrangement: Arrangement) -> list[Grids]:
        """The grids of every kind of node."""
        tables: list[Grids] = []
        for number, (kind, rules) in enumerate(
            zip(self.pool.kinds, arrangement.rules, strict=True)
        ):
            if arrangement.meshes_only and not kind.is_one_mesh:
                tables.append(())
                continue
            key = (number, arrangement.sizes, rules)
            if key not in self._grids:
                positions = kind.members(self.with_stragglers)
                self._grids[key] = pack_grids(kind.matrix, positions, arrangement.sizes, rules)
            tables.append(self._grids[key])
        return tables

    def _node_blocks(self, arrangement: Arrangement) -> tuple[Ints, Ints]:
        """Blocks (n x size device numbers) of all nodes in tree order, each one's place there."""
        pool, tables = self.pool, self._tables(arrangement)
        lengths = np.array([len(table) for table in tables], dtype=np.int64)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        table = np.array([block for table in tables for block in table], dtype=np.int64)
        table = table.reshape(-1, prod(arrangement.sizes))
        kinds = pool.kind_of[pool.walk]
        counts = lengths[kinds]
        place = np.repeat(np.arange(len(kinds), dtype=np.int64), counts)
        within = np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts, counts)
        rows = table[starts[kinds[place]] + within]
        return rows + pool.first_device[pool.walk[place]][:, None], place


def _whole_groups(labels: Ints, ratio: int) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """An order that brings equal labels together, and which of it are part of whole groups."""
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    counts = np.diff(np.append(first, len(ordered)))
    within = np.arange(len(ordered)) - np.repeat(first, counts)
    return order, within < np.repeat(counts // ratio * ratio, counts)


def is_contiguous(nodes: Ints) -> bool:
    """Whether every node occurs in one run: ranks in this order are torchrun's order."""
    return 1 + int(np.count_nonzero(np.diff(nodes))) == len(np.unique(nodes))
