"""The nodes that a layout may use, as arrays: a hundred thousand devices cost what a few cost.

Nodes are numbered in natural order of their names, which decides ranks. They are walked in tree
order: the farthest fabric tier first, then nearer ones, then the NVLink domain, so that what is
near stands together; what holds a required node goes first. A container divides the walk: into
nodes, domains, fabric blocks, or the whole cluster. Where NICs differ there is one more of each
network container per faster rate, in which slower nodes stand alone.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from parctl.topology.model import Node
from parctl.topology.placement.hard_rule import Inside

Ints = npt.NDArray[np.int64]
UNKNOWN_TIER = "?"


@dataclass(frozen=True, kw_only=True, eq=False)
class Container:
    name: str  # node, domain, a fabric tier, cluster
    labels: Ints  # by place in the walk
    depth: int  # of network containers: how many nearer ones there are; else -1
    rate: float | None = None  # GB/s: nodes with slower NICs stand alone; None: no condition

    @property
    def is_network(self) -> bool:
        return self.depth >= 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool:
    nodes: tuple[Node, ...]  # natural order
    kinds: tuple[Inside, ...]  # distinct kinds of node
    kind_of: Ints  # by node
    walk: Ints  # node numbers in tree order
    containers: tuple[Container, ...]  # near to far
    domain_of: Ints  # by node: number of its rack-scale domain, -1 when that is the node itself
    required: Ints  # node numbers that the job must use
    spares: tuple[str, ...]  # nodes of the same products that are kept free
    notes: tuple[str, ...]  # what was left out of the tree, in sentences
    others: frozenset[str] = frozenset()  # candidates that the required nodes leave no room for

    @cached_property
    def first_device(self) -> Ints:
        """Number of every node's first device: device number - first = position on the node."""
        sizes = np.array([len(kind.hardware.devices) for kind in self.kinds], dtype=np.int64)
        return np.concatenate([[0], np.cumsum(sizes[self.kind_of])[:-1]]).astype(np.int64)

    @cached_property
    def nests(self) -> npt.NDArray[np.bool_]:
        """`nests[i, j]`: every container of i lies in one container of j."""
        size = len(self.containers)
        result = np.ones((size, size), dtype=np.bool_)
        for i, inner in enumerate(self.containers):
            for j, outer in enumerate(self.containers):
                seen = np.zeros(int(inner.labels.max(initial=0)) + 1, dtype=np.int64)
                seen[inner.labels] = outer.labels
                result[i, j] = np.array_equal(seen[inner.labels], outer.labels)
        return result

    @cached_property
    def products(self) -> frozenset[str]:
        return frozenset(kind.product for kind in self.kinds)

    @property
    def near(self) -> int:
        """Index of the container that counts as one node: the NVLink domain, else the node."""
        return int(len(self.containers) > 1 and self.containers[1].name == "domain")

    def node_of(self, devices: Ints) -> Ints:
        """Node number of every device number."""
        return np.searchsorted(self.first_device, devices, side="right") - 1

    def num_devices(self, *, with_stragglers: bool) -> int:
        return int(self._counts(with_stragglers)[self.kind_of].sum())

    def largest_container(self, container: Container, *, with_stragglers: bool) -> int:
        """Most usable devices of one container."""
        counts = self._counts(with_stragglers)[self.kind_of[self.walk]]
        return int(np.bincount(container.labels, weights=counts).max(initial=0))

    def _counts(self, with_stragglers: bool) -> Ints:
        return np.array([len(kind.members(with_stragglers)) for kind in self.kinds], dtype=np.int64)


def make_pool(
    nodes: Sequence[Node],
    insides: dict[int, Inside],
    tiers: Sequence[str],
    *,
    required: Collection[str] = (),
    spares: int = 0,
) -> Pool:
    """Arrange nodes, given in natural order. `insides` is keyed by the id of the hardware."""
    kept = spare_nodes(nodes, insides, required, spares)
    kept_names = {node.name for node in kept}
    nodes = [node for node in nodes if node.name not in kept_names]
    of_node = [insides[id(node.hardware)] for node in nodes]
    kinds = tuple({id(inside): inside for inside in of_node}.values())
    number = {id(inside): i for i, inside in enumerate(kinds)}
    kind_of = np.array([number[id(inside)] for inside in of_node], dtype=np.int64)
    domains: dict[str, list[int]] = {}
    for i, node in enumerate(nodes):
        if node.domain is not None:
            domains.setdefault(node.domain, []).append(i)
    wide = {name: i for i, name in enumerate(n for n, of in domains.items() if len(of) > 1)}
    domain_of = np.array([wide.get(node.domain or "", -1) for node in nodes], dtype=np.int64)
    values = _tier_values(nodes, domains, len(tiers))
    nested, notes = _nested_tiers(values, domains, tiers)
    keys = [tuple(value[t] for t in reversed(nested)) for value in values]
    wanted = set(required)
    walk = _walk(nodes, keys, wanted)
    single = np.arange(len(nodes), dtype=np.int64)
    containers = [Container(name="node", labels=single, depth=-1)]
    if wide:
        alone = np.where(domain_of < 0, len(wide) + single, domain_of)
        containers.append(Container(name="domain", labels=_runs(alone[walk]), depth=-1))
    near = containers[-1].labels
    for depth, t in enumerate(nested):
        level = len(nested) - depth
        numbers: dict[tuple[str, ...], int] = {}
        of = [numbers.setdefault(key[:level], len(numbers)) for key in keys]
        labels = _runs(np.array(of, dtype=np.int64)[walk])
        containers.append(Container(name=tiers[t], labels=labels, depth=depth))
    containers.append(Container(name="cluster", labels=np.zeros_like(single), depth=len(nested)))
    rates = np.array([kind.network_crossing.rate for kind in kinds])[kind_of[walk]]
    return Pool(
        nodes=tuple(nodes),
        kinds=kinds,
        kind_of=kind_of,
        walk=walk,
        containers=tuple(_with_rates(containers, near, rates)),
        domain_of=domain_of,
        required=np.array([i for i, n in enumerate(nodes) if n.name in wanted], dtype=np.int64),
        spares=tuple(node.name for node in kept),
        notes=tuple(notes),
    )


def spare_nodes(
    nodes: Sequence[Node], insides: Mapping[int, Inside], required: Collection[str], count: int
) -> list[Node]:
    """The last nodes, of those with most usable devices: each can stand in for any other node."""
    needed = set(required)
    free = [node for node in nodes if node.name not in needed]
    most = max((len(insides[id(node.hardware)].usable) for node in free), default=0)
    able = [node for node in free if len(insides[id(node.hardware)].usable) == most]
    return able[len(able) - min(count, len(able)) :]


def _walk(nodes: Sequence[Node], keys: Sequence[tuple[str, ...]], required: set[str]) -> Ints:
    """Node numbers in tree order: a container stands where its first node does in natural order,
    before those without a required node if it has one."""
    paths = [
        [*(key[: depth + 1] for depth in range(len(key))), (*key, "domain", node.domain or i), i]
        for i, (node, key) in enumerate(zip(nodes, keys, strict=True))
    ]
    first: dict[object, int] = {}
    needed: set[object] = set()
    for i, (node, path) in enumerate(zip(nodes, paths, strict=True)):
        for prefix in path:
            first.setdefault(prefix, i)
        if node.name in required:
            needed.update(path)
    order = [tuple((prefix not in needed, first[prefix]) for prefix in path) for path in paths]
    return np.array(sorted(range(len(nodes)), key=order.__getitem__), dtype=np.int64)


def _tier_values(
    nodes: Sequence[Node], domains: dict[str, list[int]], count: int
) -> list[tuple[str, ...]]:
    """Tier values of every node. Where one is unknown the node (or its domain) stands alone: nobody
    said that it is near anything."""
    values = [list(node.tiers) for node in nodes]
    for t in range(count):
        for name, members in domains.items():
            known = {values[i][t] for i in members} - {UNKNOWN_TIER}
            for i in members:
                if values[i][t] == UNKNOWN_TIER:
                    values[i][t] = min(known) if len(known) == 1 else f"{UNKNOWN_TIER} {name}"
        for i, node in enumerate(nodes):
            if values[i][t] == UNKNOWN_TIER:
                values[i][t] = f"{UNKNOWN_TIER} {node.name}"
    return [tuple(value) for value in values]


def _nested_tiers(
    values: Sequence[tuple[str, ...]], domains: dict[str, list[int]], tiers: Sequence[str]
) -> tuple[list[int], list[str]]:
    """Tiers that no NVLink domain straddles, nearest first, and why others are not used."""
    nested, notes = [], []
    for t, tier in enumerate(tiers):
        split = [name for name, of in domains.items() if len({values[i][t] for i in of}) > 1]
        if split:
            notes.append(f"tier {tier} is not used: NVLink domain {split[0]} spans several of it")
        else:
            nested.append(t)
    return nested, notes


def _with_rates(
    containers: Sequence[Container], near: Ints, rates: npt.NDArray[np.float64]
) -> Iterator[Container]:
    """Every network container, before it the same for the faster nodes alone, fastest first.

    A domain is as fast as its slowest node, so that it is never torn apart.
    """
    slowest = np.full(int(near.max(initial=0)) + 1, np.inf)
    np.minimum.at(slowest, near, rates)
    rates = slowest[near]
    faster = np.unique(rates)[:0:-1].tolist()
    for container in containers:
        if container.is_network:
            for rate in faster:
                apart = container.labels.max(initial=0) + 1 + near
                labels = np.where(rates >= rate, container.labels, apart)
                yield Container(
                    name=container.name, labels=labels, depth=container.depth, rate=rate
                )
        yield container


def _runs(labels: Ints) -> Ints:
    """Number equal neighbours 0, 1, 2, ... in the order in which they stand."""
    changes = np.concatenate([[0], (labels[1:] != labels[:-1]).astype(np.int64)])
    return np.cumsum(changes).astype(np.int64)
