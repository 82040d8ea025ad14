"""The hard rule: where a tensor-parallel group may live.

A TP group lies in one full mesh of one NVLink domain, by facts:

    NVLink, xGMI             yes, if every pair has a link of its own
    CPU devices of one node  yes (`host`)
    PCIe                     only with `parallelism.allow_pcie_tp`
    unknown links            the product's table decides (source `product`); without one, accepted
                             inside a node, with a warning
    several domains          only with `parallelism.allow_cross_node_tp`, and then as full meshes
                             joined by the network
    a rack-scale domain      counts as one node, unless `strict_node`

`Inside` is one kind of node seen through this rule.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from parctl.topology.cliques import full_mesh_cliques, largest_mesh, pack_meshes
from parctl.topology.links import link_class, link_count
from parctl.topology.model import Hardware, LinkClass, Topology
from parctl.topology.placement.cost import NETWORK_LATENCY_S, Crossing
from parctl.topology.products import find_product, usual_code

UNKNOWN_CODE = "?"
NIC_DISTANCE = ("PIX", "PXB", "PHB", "NODE", "SYS")  # nearest first
MESH_LINKS = frozenset({LinkClass.NVLINK, LinkClass.XGMI, LinkClass.HOST, LinkClass.UNKNOWN})


@dataclass(frozen=True, kw_only=True)
class Inside:
    """One kind of node: which devices can be used, and how they are joined."""

    hardware: Hardware
    matrix: tuple[tuple[str, ...], ...]  # unknown links filled in from the product's table
    from_product: bool  # the table filled some in
    guessed: bool  # some are still unknown
    usable: tuple[int, ...]  # positions without a fault, near ones together
    stragglers: tuple[int, ...]  # usable, but cut off from a node that otherwise has NVLink
    allow_pcie: bool

    @cached_property
    def joined(self) -> Callable[[str], bool]:
        """Which link codes may join the members of a TP group."""
        return _joins_or_is_pcie if self.allow_pcie else _joins

    @cached_property
    def largest_mesh(self) -> int:
        return largest_mesh(self.matrix, self.joined, self.usable)

    @cached_property
    def pcie_only(self) -> bool:
        """Several devices and no two of them may share a TP group."""
        return len(self.usable) > 1 and self.largest_mesh == 1

    @cached_property
    def product(self) -> str:
        """Names of the usable devices' products, one unless the node is mixed."""
        names = {self.hardware.devices[i].product or "unknown device" for i in self.usable}
        return "+".join(sorted(names))

    @cached_property
    def network_gb_s(self) -> float | None:
        """GB/s one way of a device's share of the NICs; the product's usual rate if unknown."""
        speeds = [nic.speed_gbit_s for nic in self.hardware.nics]
        known = [speed for speed in speeds if speed is not None]
        if known and len(known) == len(speeds):
            return sum(known) / 8 / len(self.hardware.devices)
        product = find_product(self.product)
        return None if product is None or product.nic_gbit_s is None else product.nic_gbit_s / 8

    @cached_property
    def rails(self) -> tuple[int, ...]:
        """The rail of every device's nearest NIC, the first of equals; -1 where nobody said."""
        hardware = self.hardware
        found = []
        for position in range(len(hardware.devices)):
            row = hardware.nic_matrix[position] if hardware.nic_matrix else ()
            near = [
                (NIC_DISTANCE.index(code), number, hardware.nics[number].rail)
                for number, code in enumerate(row)
                if code in NIC_DISTANCE
            ]
            rail = min(near)[2] if near else None
            found.append(-1 if rail is None else rail)
        return tuple(found)

    @cached_property
    def network_crossing(self) -> Crossing:
        """What a device of this node crosses when its group leaves the node."""
        return Crossing(
            link=LinkClass.NETWORK, bandwidth=self.network_gb_s, latency_s=NETWORK_LATENCY_S
        )

    @cached_property
    def nvlink_gb_s(self) -> float | None:
        """GB/s one way of a device over all its NVLinks."""
        product = find_product(self.product)
        return None if product is None else product.nvlink_gb_s

    def members(self, with_stragglers: bool) -> tuple[int, ...]:
        """Positions of the devices that a job may use, near ones together."""
        return tuple(i for i in self.usable if with_stragglers or i not in self.stragglers)

    @cached_property
    def is_one_mesh(self) -> bool:
        """Whether its devices, the stragglers aside, are joined each with each, not over PCIe."""
        members = self.members(False)
        full = largest_mesh(self.matrix, _joins, members)
        return full == len(members)

    def num_meshes(self, size: int) -> int:
        """How many disjoint full meshes of `size` devices there are."""
        return len(pack_meshes(self.matrix, size, self.joined, self.members(False)))


def inspect(hardware: Hardware, *, allow_pcie: bool) -> Inside:
    """Look at one kind of node through the hard rule."""
    size = range(len(hardware.devices))
    matrix = hardware.matrix
    if any(UNKNOWN_CODE in row for row in matrix):
        matrix = tuple(tuple(_code(hardware, i, j) for j in size) for i in size)
    usable = [i for i in size if not hardware.devices[i].faults]
    cliques = full_mesh_cliques(matrix)
    meshed = [i for members, _ in cliques for i in members if i in set(usable)]
    linked = {
        i
        for i in usable
        if any(link_count(matrix[i][j]) and link_count(matrix[j][i]) for j in usable)
    }
    stragglers = [i for i in usable if linked and i not in linked]
    rest = [i for i in usable if i not in meshed]
    rest.sort(key=lambda i: (hardware.devices[i].numa or 0, i))
    return Inside(
        hardware=hardware,
        matrix=matrix,
        from_product=matrix != hardware.matrix,
        guessed=any(UNKNOWN_CODE in row for row in matrix)
        and any(matrix[i][j] == UNKNOWN_CODE for i in usable for j in usable),
        usable=tuple(meshed + rest),
        stragglers=tuple(stragglers),
        allow_pcie=allow_pcie,
    )


def largest_tp(
    topology: Topology, *, allow_pcie_tp: bool, allow_cross_node_tp: bool, strict_node: bool
) -> int:
    """Size of the largest TP group that the hard rule lets anyone place on this cluster."""
    views = {id(n.hardware): n.hardware for n in topology.nodes}
    insides = {key: inspect(value, allow_pcie=allow_pcie_tp) for key, value in views.items()}
    domains: dict[str, int] = {}
    total = 0
    for node in topology.nodes:
        inside = insides[id(node.hardware)]
        if not inside.pcie_only:
            total += len(inside.members(False))
        if node.domain is not None and not strict_node and inside.is_one_mesh:
            domains[node.domain] = domains.get(node.domain, 0) + len(inside.members(False))
    in_node = max((inside.largest_mesh for inside in insides.values()), default=0)
    largest = max(in_node, *domains.values()) if domains else in_node
    return max(largest, total) if allow_cross_node_tp else largest


def _joins(code: str) -> bool:
    return link_class(code) in MESH_LINKS


def _joins_or_is_pcie(code: str) -> bool:
    return _joins(code) or link_class(code) is LinkClass.PCIE


def _code(hardware: Hardware, i: int, j: int) -> str:
    code = hardware.matrix[i][j]
    a, b = hardware.devices[i], hardware.devices[j]
    if code != UNKNOWN_CODE or a.product is None or a.product != b.product:
        return code
    product = find_product(a.product)
    if product is None:
        return code
    same_numa = a.numa is not None and a.numa == b.numa
    return usual_code(product, len(hardware.devices), i, j, same_numa=same_numa)
