"""The nodes that a layout may use, as arrays: a hundred thousand devices cost what a few cost.

Nodes are numbered in natural order of their names, which decides ranks. They are walked in tree
order: the farthest fabric tier first, then nearer ones, then the NVLink domain, so that what is
near stands together. Containers (node, domain, tier) are runs of that walk.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from parctl.topology.hard_rule import Inside
from parctl.topology.model import Node

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Pool:
    nodes: tuple[Node, ...]  # natural order
    kinds: tuple[Inside, ...]  # distinct kinds of node
    kind_of: Ints  # by node
    walk: Ints  # node numbers in tree order
    containers: tuple[tuple[str, Ints], ...]  # (name, container by place in the walk), near to far
    domain_of: Ints  # by node: number of its rack-scale domain, -1 when that is the node itself
    notes: tuple[str, ...]  # what was left out of the tree, in sentences

    @cached_property
    def first_device(self) -> Ints:
        """Number of every node's first device: device number - first = position on the node."""
        sizes = np.array([len(kind.hardware.devices) for kind in self.kinds], dtype=np.int64)
        return np.concatenate([[0], np.cumsum(sizes[self.kind_of])[:-1]]).astype(np.int64)

    def node_of(self, devices: Ints) -> Ints:
        """Node number of every device number."""
        return np.searchsorted(self.first_device, devices, side="right") - 1

    def num_devices(self, *, with_stragglers: bool) -> int:
        return int(self._counts(with_stragglers)[self.kind_of].sum())

    def largest_container(self, container: Ints, *, with_stragglers: bool) -> int:
        """Most usable devices of one container."""
        counts = self._counts(with_stragglers)[self.kind_of[self.walk]]
        return int(np.bincount(container, weights=counts).max(initial=0))

    def _counts(self, with_stragglers: bool) -> Ints:
        return np.array(
            [len(k.usable) - (0 if with_stragglers else len(k.stragglers)) for k in self.kinds],
            dtype=np.int64,
        )


def make_pool(nodes: Sequence[Node], insides: dict[int, Inside], tiers: Sequence[str]) -> Pool:
    """Arrange nodes, given in natural order. `insides` is keyed by the id of the hardware."""
    used = {id(node.hardware): None for node in nodes}
    number = {key: i for i, key in enumerate(used)}
    domains: dict[str, list[int]] = {}
    for i, node in enumerate(nodes):
        if node.domain is not None:
            domains.setdefault(node.domain, []).append(i)
    wide = {name: i for i, name in enumerate(n for n, of in domains.items() if len(of) > 1)}
    domain_of = np.array([wide.get(node.domain or "", -1) for node in nodes], dtype=np.int64)
    nested, notes = _nested_tiers(nodes, domains, tiers)
    keys = [tuple(node.tiers[t] for t in reversed(nested)) for node in nodes]
    first_seen: dict[tuple[object, ...], int] = {}
    order = []
    for i, (node, key) in enumerate(zip(nodes, keys, strict=True)):
        # containers stand where their first node stands in natural order
        path = [
            *(key[: depth + 1] for depth in range(len(key))),
            (*key, "domain", node.domain or i),
        ]
        order.append((*(first_seen.setdefault(prefix, i) for prefix in path), i))
    walk = np.array(sorted(range(len(nodes)), key=order.__getitem__), dtype=np.int64)
    containers = [("node", np.arange(len(nodes), dtype=np.int64))]
    if wide:
        alone = len(wide) + np.arange(len(nodes))
        containers.append(("domain", _runs(np.where(domain_of < 0, alone, domain_of)[walk])))
    for position, t in enumerate(nested):
        depth = len(nested) - position
        numbers: dict[tuple[str, ...], int] = {}
        values = [numbers.setdefault(key[:depth], len(numbers)) for key in keys]
        containers.append((tiers[t], _runs(np.array(values, dtype=np.int64)[walk])))
    containers.append(("cluster", np.zeros(len(nodes), dtype=np.int64)))
    return Pool(
        nodes=tuple(nodes),
        kinds=tuple(insides[key] for key in used),
        kind_of=np.array([number[id(node.hardware)] for node in nodes], dtype=np.int64),
        walk=walk,
        containers=tuple(containers),
        domain_of=domain_of,
        notes=tuple(notes),
    )


def _nested_tiers(
    nodes: Sequence[Node], domains: dict[str, list[int]], tiers: Sequence[str]
) -> tuple[list[int], list[str]]:
    """Tiers that no NVLink domain straddles, nearest first, and why others are not used."""
    nested, notes = [], []
    for t, tier in enumerate(tiers):
        split = [name for name, of in domains.items() if len({nodes[i].tiers[t] for i in of}) > 1]
        if split:
            notes.append(f"tier {tier} is not used: NVLink domain {split[0]} spans several of it")
        else:
            nested.append(t)
    return nested, notes


def _runs(labels: Ints) -> Ints:
    """Number equal neighbours 0, 1, 2, ... in the order in which they stand."""
    changes = np.concatenate([[0], (labels[1:] != labels[:-1]).astype(np.int64)])
    return np.cumsum(changes).astype(np.int64)
