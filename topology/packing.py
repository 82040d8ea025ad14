"""Pack blocks of ranks into containers: meshes into nodes, nodes into domains, domains into tiers.

A step `(container, ratio)` groups `ratio` blocks of the step before into one block that lies in
one container. All blocks of a step have one size, so a container that holds n of the smaller ones
holds exactly n // ratio of the larger ones: taking them in order is optimal, and what is left over
in a container stays unused. Everything is array arithmetic over blocks, never over pairs.
"""

from collections.abc import Sequence

import numpy as np

from parctl.topology.pool import Ints, Pool


def pack(
    pool: Pool, ratios: Sequence[int], total: int, *, tp: int, with_stragglers: bool
) -> Ints | None:
    """Device numbers in packing order, innermost blocks together. None: the pool is too small.

    `ratios[0]` is the size of the block that must be a full mesh of one node; `ratios[1:]` belong
    to `pool.containers`. Their product is `total`.
    """
    blocks, place = _mesh_blocks(pool, ratios[0], tp, with_stragglers)
    for (_, container), ratio in zip(pool.containers, ratios[1:], strict=True):
        if len(blocks) * blocks.shape[1] < total:
            return None
        if ratio > 1:
            blocks, place = _group(blocks, place, container[place], ratio)
    if len(blocks) * blocks.shape[1] < total:
        return None
    return blocks.reshape(-1)[:total]


def count_tp_groups(pool: Pool, tp: int, *, level: int) -> int:
    """How many TP groups the pool holds when each lies in one container of `level` (0: a mesh)."""
    if level == 0:
        counts = [len(kind.blocks(tp, tp, with_stragglers=False)) for kind in pool.kinds]
        return int(np.array(counts, dtype=np.int64)[pool.kind_of].sum())
    blocks, place = _mesh_blocks(pool, 1, 1, False)
    return len(_group(blocks, place, pool.containers[level - 1][1][place], tp)[0])


def _mesh_blocks(pool: Pool, size: int, tp: int, with_stragglers: bool) -> tuple[Ints, Ints]:
    """Blocks (n x size device numbers) of all nodes in tree order, and each block's place there."""
    tables = [kind.blocks(size, tp, with_stragglers=with_stragglers) for kind in pool.kinds]
    lengths = np.array([len(table) for table in tables], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    table = np.array([block for table in tables for block in table], dtype=np.int64)
    table = table.reshape(-1, size)
    kinds = pool.kind_of[pool.walk]
    counts = lengths[kinds]
    place = np.repeat(np.arange(len(kinds), dtype=np.int64), counts)
    within = np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = table[starts[kinds[place]] + within]
    return rows + pool.first_device[pool.walk[place]][:, None], place


def _group(blocks: Ints, place: Ints, container: Ints, ratio: int) -> tuple[Ints, Ints]:
    """Group `ratio` neighbouring blocks of one container; drop what is left over in it."""
    if len(blocks) == 0:
        return blocks.reshape(0, blocks.shape[1] * ratio), place
    first = np.flatnonzero(np.concatenate([[True], container[1:] != container[:-1]]))
    counts = np.diff(np.append(first, len(container)))
    within = np.arange(len(container)) - np.repeat(first, counts)
    keep = within < np.repeat(counts // ratio * ratio, counts)
    return blocks[keep].reshape(-1, blocks.shape[1] * ratio), place[keep][::ratio]


def is_contiguous(nodes: Ints) -> bool:
    """Whether every node occurs in one run: ranks in this order are torchrun's order."""
    return 1 + int(np.count_nonzero(np.diff(nodes))) == len(np.unique(nodes))
