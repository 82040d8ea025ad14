"""Collectives on the links that a group crosses, by alpha-beta costs. Times in seconds.

A group of n ranks with g of them on each island sends over the fast links inside and over the
network between; both go on at once, so the slower part counts. An island's g ranks drive g network
shares, whatever the collective is.

    gather, scatter   S (n-1)/n over the fast links, S (i-1)/i / g over the network, i islands
    all-reduce        twice that
    all-to-all        of S bytes per rank: S (g-1)/n inside, S (n-g)/n over the network
"""

from dataclasses import dataclass

from parctl.planner.time.constants import Constants
from parctl.planner.time.job import Fabric

LATENCY_FAST = 3e-6  # s per step of a ring on NVLink; NCCL's own tables say 2 to 5 us
LATENCY_SLOW = 8e-6  # s per step of a ring over a network
FAST, SLOW = 0.8, 0.9  # share of the links' rate that nccl-tests reports for large tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Ranks of one axis: how many, and how many of them share an island."""

    size: int
    inside: int
    fast: float  # bytes/s that collectives reach
    slow: float
    latency: float  # s that a ring between islands adds per rank
    near: float = LATENCY_FAST  # s per step of a ring inside an island

    @property
    def islands(self) -> int:
        return -(-self.size // self.inside)

    def gather(self, num_bytes: float) -> float:
        """All-gather to, or reduce-scatter from, `num_bytes` of the whole tensor."""
        if self.size == 1:
            return 0.0
        time = num_bytes * (self.inside - 1) / self.inside / self.fast + (
            self.near * (self.inside - 1)
        )
        if self.islands > 1:
            across = num_bytes * (self.islands - 1) / self.islands / self.inside / self.slow
            time = max(time, across) + self.latency * self.size
        return time

    def all_reduce(self, num_bytes: float) -> float:
        return 2 * self.gather(num_bytes)

    def dispatch(self, row_bytes: float, copies: int) -> float:
        """Each row goes to `copies` of the ranks, evenly; to another island only once.

        An island passes a row on to its own ranks (DeepEP and its like), so the network carries
        as many copies as there are distinct islands among them.
        """
        if self.size == 1:
            return 0.0
        inside = row_bytes * copies * (self.inside - 1) / self.inside / self.fast
        missed = (1 - 1 / self.islands) ** copies
        across = row_bytes * (self.islands - 1) * (1 - missed) / self.slow
        return max(inside, across) + (LATENCY_SLOW if self.islands > 1 else self.near)

    def send(self, num_bytes: float) -> float:
        """From a rank to its neighbour, over the worst link of the group."""
        if self.size == 1:
            return 0.0
        if self.islands > 1:
            return LATENCY_SLOW + num_bytes / self.slow
        return self.near + num_bytes / self.fast


def group(fabric: Fabric, constants: Constants, *, size: int, stride: int) -> Group:
    """The group of `size` ranks that are `stride` apart, ranks being laid out island by island."""
    inside = min(size, max(1, fabric.island // stride))
    while size % inside:
        inside -= 1
    return Group(
        size=size,
        inside=inside,
        fast=fabric.fast * FAST,
        slow=fabric.slow * SLOW,
        near=LATENCY_FAST if fabric.latency is None else fabric.latency,
        latency=constants.ring_latency,
    )
