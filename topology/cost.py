"""What a layout costs: how long its axes would talk, were each alone and nothing overlapped.

::

    cost = sum over axes of  bytes(axis) / bandwidth(worst group)  +  (size - 1) x latency(distance)

It ranks layouts; it predicts no step time. The latency term is small beside any real traffic: it
decides between places of equal bandwidth (a node before a rack, a near switch before a far one).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from parctl.topology.model import LinkClass

# Only ranks layouts where a bandwidth is unknown, in GB/s; never shown. Ordered as the classes are.
ASSUMED_GB_S = {
    LinkClass.DEVICE: 1000.0,
    LinkClass.NVLINK: 100.0,
    LinkClass.XGMI: 50.0,
    LinkClass.HOST: 20.0,
    LinkClass.PCIE: 10.0,
    LinkClass.NETWORK: 5.0,
    LinkClass.UNKNOWN: 1.0,
}
# seconds per message: order of magnitude of NCCL's measured latencies inside a node and over
# InfiniBand, growing by one switch hop per fabric tier
NODE_LATENCY_S = 2e-6
DOMAIN_LATENCY_S = 3e-6
NETWORK_LATENCY_S = 10e-6
TIER_LATENCY_S = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """What a group has to cross at worst."""

    link: LinkClass
    bandwidth: float | None  # GB/s one way per device; None: unknown
    latency_s: float


NOTHING = Crossing(link=LinkClass.DEVICE, bandwidth=None, latency_s=0.0)


def axis_seconds(volume: float, size: int, crossing: Crossing) -> float:
    """Time of one axis: its bytes over its worst link, and the latency of a ring."""
    bandwidth = crossing.bandwidth or ASSUMED_GB_S[crossing.link]
    return volume / (bandwidth * 1e9) + (size - 1) * crossing.latency_s


def layout_seconds(
    traffic: Mapping[str, float], sizes: Mapping[str, int], crossings: Mapping[str, Crossing]
) -> float:
    """Cost of a layout: the sum over all axes that have more than one rank."""
    return sum(
        axis_seconds(traffic.get(axis, 0.0), size, crossings[axis])
        for axis, size in sizes.items()
        if size > 1
    )
