"""What a layout costs: how long its axes would talk, were each alone and nothing overlapped.

::

    cost = sum over axes of  bytes(axis) / bandwidth(worst group)  +  (size - 1) x latency(distance)

It ranks layouts; it predicts no step time. The latency term is small beside any real traffic: it
decides between places of equal bandwidth (a node before a rack, a near switch before a far one).
"""

from dataclasses import dataclass, replace

from parctl.topology.links import BADNESS, link_bandwidth, link_class
from parctl.topology.model import LinkClass

# Only ranks layouts where a bandwidth is unknown, in GB/s; never shown. Ordered as the classes are.
ASSUMED_GB_S = {
    LinkClass.DEVICE: 1000.0,
    LinkClass.NVLINK: 100.0,
    LinkClass.XGMI: 50.0,
    LinkClass.HOST: 20.0,
    LinkClass.PCIE: 10.0,
    LinkClass.NETWORK: 5.0,
    LinkClass.UNKNOWN: 10.0,  # inside a node: it can be no worse than PCIe
}
# Share of its PCIe rate that a pair on different sockets gets. It only ranks layouts: by NCCL's
# topo.h the link between sockets has 0.5 (QPI) to 1 (EPYC) times the PCIe rate of its time.
PCIE_SHARE = {"SYS": 0.8}
# seconds per message: order of magnitude of NCCL's measured latencies inside a node and over
# InfiniBand, growing by one switch hop per fabric tier
NODE_LATENCY_S = 2e-6
DOMAIN_LATENCY_S = 3e-6
NETWORK_LATENCY_S = 10e-6
TIER_LATENCY_S = 1e-6
# A farther tier is counted a tenth thinner: nobody tells how thin it is, and it is never thicker.
# So the axes with most traffic stay near. It only ranks layouts.
TIER_SHARE = 0.9
# far PCIe pairs pass more bridges: a fraction of a microsecond each
PCIE_LATENCY_S = {"PXB": 0.2e-6, "PHB": 0.4e-6, "NODE": 0.6e-6, "SYS": 0.8e-6}


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """What a group has to cross at worst."""

    link: LinkClass
    bandwidth: float | None  # GB/s one way per device; None: unknown
    latency_s: float
    share: float = 1.0  # of the bandwidth: what is left of it over this distance

    @property
    def rate(self) -> float:
        """GB/s that layouts are ranked by."""
        return (self.bandwidth or ASSUMED_GB_S[self.link]) * self.share

    @property
    def badness(self) -> tuple[float, int, float]:
        """Sorts crossings from best to worst: by rate, then class of link, then latency."""
        return -self.rate, BADNESS[self.link], self.latency_s


def link_crossing(product: str | None, code: str, size: int) -> Crossing:
    """What a group of `size` inside one node crosses when its worst pair is joined by `code`."""
    return Crossing(
        link=link_class(code),
        bandwidth=link_bandwidth(product, code, size),
        latency_s=NODE_LATENCY_S + PCIE_LATENCY_S.get(code, 0.0),
        share=PCIE_SHARE.get(code, 1.0),
    )


def tier_crossing(network: Crossing, depth: int) -> Crossing:
    """What a group crosses that leaves so many fabric tiers."""
    latency_s = network.latency_s + TIER_LATENCY_S * depth
    return replace(network, latency_s=latency_s, share=TIER_SHARE**depth)


def domain_crossing(nvlink_gb_s: float | None) -> Crossing:
    """What a group crosses that leaves its nodes but not its rack-scale NVLink domain."""
    return Crossing(link=LinkClass.NVLINK, bandwidth=nvlink_gb_s, latency_s=DOMAIN_LATENCY_S)


NOTHING = Crossing(link=LinkClass.DEVICE, bandwidth=None, latency_s=0.0)


def axis_seconds(volume: float, size: int, crossing: Crossing) -> float:
    """Time of one axis: its bytes over its worst link, and the latency of a ring."""
    return volume / (crossing.rate * 1e9) + (size - 1) * crossing.latency_s
