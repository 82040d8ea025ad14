"""Every placement of a small job on a small cluster, and a family of small clusters to try.

The oracle shares nothing with the engine but the meaning of a link code and the constants of the
cost. It looks at pairs of places: what two devices have to cross, then the worst pair of every
group, for all permutations at once. The rules are filters over the permutations, in their order.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations, pairwise, permutations
from math import inf, prod

import numpy as np
import numpy.typing as npt

from parctl.topology.links import link_bandwidth, link_class
from parctl.topology.model import Hardware, LinkClass, Node, Topology
from parctl.topology.placement import LayoutRequest, lay_out
from parctl.topology.placement.cost import (
    ASSUMED_GB_S,
    DOMAIN_LATENCY_S,
    NETWORK_LATENCY_S,
    NODE_LATENCY_S,
    PCIE_LATENCY_S,
    PCIE_SHARE,
    TIER_LATENCY_S,
    TIER_SHARE,
)
from parctl.topology.products import find_product, product_named
from parctl.topology.synthetic import node_hardware

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Place = tuple[Node, int]

WORSE = list(LinkClass)
MESHES = (LinkClass.NVLINK, LinkClass.XGMI, LinkClass.HOST, LinkClass.UNKNOWN)


@dataclass(frozen=True, kw_only=True)
class Crossing:
    link: LinkClass
    rate: float
    latency_s: float
    depth: int  # fabric tiers below the one that holds both; 0 inside a domain

    @property
    def badness(self) -> tuple[float, int, float]:
        return -self.rate, WORSE.index(self.link), self.latency_s


def cut_off(hardware: Hardware, position: int) -> bool:
    """Whether a device has no NVLink although other devices of its node do."""
    linked = [any(code.startswith("NV") for code in row) for row in hardware.matrix]
    return any(linked) and not linked[position]


def network_rate(node: Node) -> float:
    """GB/s of one device's share of the NICs, the product's usual rate where nobody said."""
    speeds = [nic.speed_gbit_s for nic in node.hardware.nics]
    if speeds and None not in speeds:
        return sum(speed or 0.0 for speed in speeds) / 8 / len(node.hardware.devices)
    product = find_product(str(node.hardware.devices[0].product))
    usual = product.nic_gbit_s if product else None
    return usual / 8 if usual else ASSUMED_GB_S[LinkClass.NETWORK]


def crossing(a: Place, b: Place, size: int) -> Crossing:
    """What a group of `size` crosses between two of its members."""
    (one, i), (other, j) = a, b
    product = str(one.hardware.devices[i].product)
    if one is other:
        codes = {one.hardware.matrix[i][j], one.hardware.matrix[j][i]}
        found = []
        for code in codes:
            rate = link_bandwidth(product, code, size) or ASSUMED_GB_S[link_class(code)]
            latency = NODE_LATENCY_S + PCIE_LATENCY_S.get(code, 0.0)
            rate *= PCIE_SHARE.get(code, 1.0)
            found.append(Crossing(link=link_class(code), rate=rate, latency_s=latency, depth=0))
        return max(found, key=lambda c: c.badness)
    linked = not cut_off(one.hardware, i) and not cut_off(other.hardware, j)
    if one.domain is not None and one.domain == other.domain and linked:
        known = [find_product(str(n.hardware.devices[0].product)) for n in (one, other)]
        rate = min(p.nvlink_gb_s for p in known if p and p.nvlink_gb_s)
        return Crossing(link=LinkClass.NVLINK, rate=rate, latency_s=DOMAIN_LATENCY_S, depth=0)
    depth = next(
        (t for t, (x, y) in enumerate(zip(one.tiers, other.tiers, strict=True)) if x == y != "?"),
        len(one.tiers),
    )
    if one.domain is not None and one.domain == other.domain:
        depth = 0
    rate = min(network_rate(one), network_rate(other))
    return Crossing(link=LinkClass.NETWORK, rate=rate, latency_s=NETWORK_LATENCY_S, depth=depth)


class Family:
    """One kind of group of a job: what its pairs cross in every placement."""

    def __init__(
        self, job: "Job", size: int, groups: list[list[int]], *, neighbours: bool = False
    ) -> None:
        self.job = job
        self.size = size
        pairs = [
            pair for g in groups for pair in (pairwise(g) if neighbours else combinations(g, 2))
        ]
        self.tables = Tables(job.places, 2 if neighbours else size)
        left, right = np.array(pairs).T
        self.a, self.b = job.tried[:, left], job.tried[:, right]

    @cached_property
    def in_node(self) -> Bools:
        return np.asarray(self.tables.same_node[self.a, self.b].all(axis=1))

    @cached_property
    def in_domain(self) -> Bools:
        return np.asarray(self.tables.same_domain[self.a, self.b].all(axis=1))

    def all_of(self, links: tuple[LinkClass, ...]) -> Bools:
        allowed = np.array([c.link in links for c in self.tables.crossings])
        return np.asarray(allowed[self.tables.rank[self.a, self.b]].all(axis=1))

    def seconds(self, volume: float) -> npt.NDArray[np.float64]:
        """The slowest pair of every placement; over the network the slowest rate and the farthest
        tier count."""
        each = np.array(
            [volume / (c.rate * 1e9) + (self.size - 1) * c.latency_s for c in self.tables.crossings]
        )
        network = np.array([c.link is LinkClass.NETWORK for c in self.tables.crossings])
        rates = np.array([c.rate for c in self.tables.crossings])
        ranks = self.tables.rank[self.a, self.b]
        depth = self.tables.depth[self.a, self.b].max(axis=1)
        near = np.where(network[ranks], 0.0, each[ranks]).max(axis=1)
        slowest = np.where(network[ranks], rates[ranks], inf).min(axis=1) * TIER_SHARE**depth
        far = volume / (slowest * 1e9) + (self.size - 1) * (
            NETWORK_LATENCY_S + depth * TIER_LATENCY_S
        )
        return np.asarray(np.where(slowest < inf, np.maximum(near, far), near))


class Tables:
    """What every pair of places crosses, for groups of one size."""

    def __init__(self, places: list[Place], size: int) -> None:
        count = len(places)
        found = {
            (i, j): crossing(places[i], places[j], size) for i, j in permutations(range(count), 2)
        }
        by_badness = {c.badness: c for c in found.values()}
        self.crossings = [by_badness[badness] for badness in sorted(by_badness)]
        position = {c.badness: n for n, c in enumerate(self.crossings)}
        self.rank = np.zeros((count, count), dtype=np.int64)
        self.depth = np.zeros((count, count), dtype=np.int64)
        self.same_node = np.zeros((count, count), dtype=np.bool_)
        self.same_domain = np.zeros((count, count), dtype=np.bool_)
        for (i, j), c in found.items():
            one, other = places[i][0], places[j][0]
            self.rank[i, j] = position[c.badness]
            self.depth[i, j] = c.depth
            self.same_node[i, j] = one is other
            self.same_domain[i, j] = one is other or (one.domain or i) == (other.domain or j)


class Job:
    """A job on given places, tried in every order."""

    def __init__(self, places: list[Place], request: LayoutRequest) -> None:
        self.places = places
        self.request = request
        axes = request.axes
        self.tried = np.array(list(permutations(range(len(places)), prod(axes.values()))))
        grid = np.arange(self.tried.shape[1]).reshape(tuple(axes.values()))
        self.families: dict[str, Family] = {}
        for position, (axis, size) in enumerate(axes.items()):
            if size > 1:
                groups = np.moveaxis(grid, position, -1).reshape(-1, size).tolist()
                self.families[axis] = Family(self, size, groups, neighbours=axis == "pp")
        if request.ep > 1:
            # ep is the innermost part of the data axes, pp outside them and tp inside
            data = [axis for axis in axes if axis not in ("pp", "tp")]
            order = ["pp"] * ("pp" in axes) + data + ["tp"] * ("tp" in axes)
            stages, tp = axes.get("pp", 1), axes.get("tp", 1)
            dealt = grid.transpose([list(axes).index(n) for n in order])
            dealt = dealt.reshape(stages, -1, request.ep, tp).swapaxes(2, 3)
            groups = dealt.reshape(-1, request.ep).tolist()
            self.families["ep"] = Family(self, request.ep, groups)

    @cached_property
    def cost(self) -> npt.NDArray[np.float64]:
        traffic = self.request.traffic
        assert traffic is not None
        total = np.zeros(len(self.tried))
        for name, family in self.families.items():
            total += family.seconds(traffic.get(name, 0.0))
        return total

    def obey_tp(self) -> Bools:
        tp = self.families.get("tp")
        if tp is None:
            return np.ones(len(self.tried), dtype=np.bool_)
        legal = tp.all_of(MESHES)
        if self.request.allow_pcie_tp:
            legal = tp.all_of((*MESHES, LinkClass.PCIE))
        for name, family in self.families.items():
            if name != "tp":
                legal &= tp.in_node | ~family.in_node
        return legal

    def fullest(self, among: Bools, *, domain: bool) -> Ints:
        """Most consecutive fsdp ranks that share a node (a domain), by placement."""
        size = self.request.axes["fsdp"]
        best = np.ones(len(self.tried), dtype=np.int64)
        axes = self.request.axes
        grid = np.arange(self.tried.shape[1]).reshape(tuple(axes.values()))
        rows = np.moveaxis(grid, list(axes).index("fsdp"), -1)
        for count in range(2, size + 1):
            if size % count == 0:
                family = Family(self, count, rows.reshape(-1, count).tolist())
                inside = family.in_domain if domain else family.in_node
                best[inside & among] = count
        return best

    def obey_fsdp(self, among: Bools) -> Bools:
        if "fsdp" not in self.families or not among.any():
            return among
        size = self.request.axes["fsdp"]
        for domain in (True, False):
            full = self.fullest(among, domain=domain)
            most = int(full[among].max())
            among = among & (full == most)
            if most < size:
                for name, family in self.families.items():
                    if name in ("dp", "pp"):
                        among = among & ~(family.in_domain if domain else family.in_node)
        return among

    def best(self) -> float:
        """The least cost of any placement under the strictest rules that can be kept."""
        legal = self.obey_tp()
        if "ep" in self.families:
            inside = legal & self.families["ep"].in_domain
            legal = inside if inside.any() else legal
        tried = [self.obey_fsdp(legal)]
        if {"cp", "fsdp"} <= set(self.families):
            tried.append(self.obey_fsdp(legal & self.families["cp"].in_domain))
        return min((float(self.cost[among].min()) for among in tried if among.any()), default=inf)

    def cost_of(self, placed: list[Place]) -> float:
        """Cost of one placement."""
        number = {(node.name, i): n for n, (node, i) in enumerate(self.places)}
        wanted = [number[node.name, i] for node, i in placed]
        row = int(np.flatnonzero((self.tried == wanted).all(axis=1))[0])
        return float(self.cost[row])


def usable_places(topology: Topology) -> list[Place]:
    return [
        (node, i)
        for node in topology.nodes
        for i, device in enumerate(node.hardware.devices)
        if not device.faults
    ]


def optimum(topology: Topology, request: LayoutRequest) -> float:
    """Least cost by trying everything; infinite when no placement obeys the hard rule."""
    places = usable_places(topology)
    products = list(dict.fromkeys(n.hardware.devices[0].product for n, _ in places))
    by_product = [[p for p in places if p[0].hardware.devices[0].product == x] for x in products]
    for pools in (by_product, [places] if len(products) > 1 else []):
        # the faster nodes of a pool may be a pool of their own
        rates = [sorted({network_rate(node) for node, _ in pool}) for pool in pools]
        tried = [
            [place for place in pool if network_rate(place[0]) >= rate]
            for pool, of in zip(pools, rates, strict=True)
            for rate in of
        ]
        sound = [[p for p in pool if not cut_off(p[0].hardware, p[1])] for pool in tried]
        best = min(
            (
                Job(pool, request).best()
                for pool in (*tried, *sound)
                if len(pool) >= request.world_size
            ),
            default=inf,
        )
        if best < inf:
            return best
    return inf


def placed(topology: Topology, request: LayoutRequest) -> list[Place]:
    """Where the engine puts every mesh coordinate."""
    layout = lay_out(request, topology)
    nodes = {node.name: node for node in topology.nodes}
    return [(nodes[layout.slots[rank].node], layout.slots[rank].gpu) for rank in layout.ranks]


# the family of clusters

NODE_SIZES = (
    (8,), (4, 4), (2, 2, 2, 2), (1,) * 8, (5, 3), (4, 2, 2), (6, 2), (3, 3, 2), (7, 1), (6,),
    (3, 3), (2, 2, 2), (4, 2), (1, 2, 3), (1,) * 6, (5,), (4, 1), (2, 3), (4,), (2, 2), (3, 1),
)  # fmt: skip
PRODUCTS = ("h100", "a100-80g", "l40s", "v100", "mi300x", "b200", "gb200", "cpu")
# PCIe switches in NUMA nodes: what `topo -m` shows of boxes without NVLink
PCIE_TREES = (("PIX", "NODE", "SYS"), ("PXB", "PHB", "SYS"), ("PIX", "PIX", "NODE"))


def clusters(seed: int, count: int, *, beyond: bool = False) -> Iterator[Topology]:
    """Clusters of at most 8 devices: even and uneven, broken, bridged, mixed, with tiers.

    `beyond`: also NICs that are faster than links inside the node, and of different speeds in one
    rack-scale domain. There the engine promises no optimum.
    """
    random_ = random.Random(seed)
    for number in range(count):
        sizes = random_.choice(NODE_SIZES)
        product = random_.choice(PRODUCTS)
        mixed = random_.random() < 0.15
        nodes = []
        for i, size in enumerate(sizes):
            name = random_.choice(("h100", "a100-80g", "l40s")) if mixed else product
            top = product_named(name).max_devices_per_node
            hardware = node_hardware(product_named(name), min(size, top))
            nodes.append(
                Node(
                    name=f"n{i}",
                    hardware=_with_other_nics(random_, hardware)
                    if beyond and hardware.nics and random_.random() < 0.7
                    else _varied(random_, hardware),
                    domain=random_.choice("ab") if name == "gb200" else None,
                    tiers=(),
                )
            )
        tiers = random_.choice(((), (), ("leaf",), ("leaf", "pod")))
        values: dict[str, tuple[str, ...]] = {}
        for node in nodes:
            # what shares a domain shares its fabric blocks
            values.setdefault(node.domain or node.name, _tier_values(random_, len(tiers)))
        yield Topology(
            name=f"cluster {seed}/{number}",
            source="generated",
            tiers=tiers,
            nodes=tuple(replace(n, tiers=values[n.domain or n.name]) for n in nodes),
        )


def _tier_values(random_: random.Random, count: int) -> tuple[str, ...]:
    pod = random_.choice("PQ")
    leaf = random_.choice((f"{pod}1", f"{pod}2", "?"))
    return (leaf, pod)[:count]


def _varied(random_: random.Random, hardware: Hardware) -> Hardware:
    """The same node with a fault, dead links, bridges, a PCIe tree, or slow NICs. No link inside a
    node is slower than leaving it."""
    size = range(len(hardware.devices))
    changes = ["none", "none", "fault"]
    if hardware.devices[0].product != "gb200":
        # inside a rack-scale domain every device has NVLink and NICs of one speed
        changes += ["dead", "nics", "tree", "bridges", "links"]
    change = random_.choice(changes)
    matrix = [list(row) for row in hardware.matrix]
    gpu = hardware.kind == "gpu"
    if change == "fault" and len(size) > 1:
        broken = random_.choice(size)
        devices = tuple(
            replace(d, faults=("broken",)) if i == broken else d
            for i, d in enumerate(hardware.devices)
        )
        return replace(hardware, devices=devices)
    if change == "nics" and hardware.nics:
        nics = tuple(replace(nic, speed_gbit_s=100.0) for nic in hardware.nics)
        return replace(hardware, nics=nics)
    if change == "dead" and gpu:
        broken = random_.choice(size)
        for i in size:
            if i != broken:
                matrix[i][broken] = matrix[broken][i] = "SYS"
    if change in ("tree", "bridges") and gpu:
        near, middle, far = random_.choice(PCIE_TREES)
        for i, j in permutations(size, 2):
            matrix[i][j] = near if i // 2 == j // 2 else middle if i // 4 == j // 4 else far
    if change == "bridges" and gpu:
        for i in size[:-1:2]:
            matrix[i][i + 1] = matrix[i + 1][i] = "NV4"
    if change == "links" and gpu:
        for i, j in combinations(size, 2):
            matrix[i][j] = matrix[j][i] = random_.choice(("NV2", "NV3", "NV4", "PIX", "SYS"))
    return replace(hardware, matrix=tuple(tuple(row) for row in matrix))


def _with_other_nics(random_: random.Random, hardware: Hardware) -> Hardware:
    """NICs of 100 to 1600 Gbit/s per device, beside PCIe trees of 32 to 64 GB/s."""
    speed = random_.choice((100.0, 400.0, 800.0, 1600.0))
    faster = tuple(replace(nic, speed_gbit_s=speed) for nic in hardware.nics)
    if hardware.devices[0].product == "gb200":
        return replace(hardware, nics=faster)
    return replace(_varied(random_, hardware), nics=faster)


JOBS: tuple[tuple[Mapping[str, int], int], ...] = (
    ({"dp": 2}, 1), ({"dp": 3}, 1), ({"dp": 4}, 1), ({"dp": 6}, 1), ({"pp": 5}, 1), ({"tp": 2}, 1),
    ({"tp": 3}, 1), ({"tp": 4}, 1), ({"dp": 2, "tp": 2}, 1), ({"tp": 2, "dp": 2}, 1),
    ({"pp": 2, "dp": 2}, 1), ({"pp": 2, "tp": 2}, 1), ({"pp": 2, "tp": 3}, 1),
    ({"cp": 2, "tp": 2}, 1), ({"fsdp": 4}, 1), ({"fsdp": 6}, 1), ({"fsdp": 8}, 1),
    ({"fsdp": 3, "tp": 2}, 1), ({"dp": 2, "fsdp": 2}, 1), ({"dp": 2, "fsdp": 4}, 1),
    ({"dp": 4, "fsdp": 2}, 1),
    ({"pp": 3, "fsdp": 2}, 1), ({"pp": 2, "fsdp": 4}, 1), ({"dp": 2, "cp": 3}, 1),
    ({"fsdp": 2, "cp": 2}, 1), ({"fsdp": 4, "cp": 2}, 1), ({"fsdp": 2, "cp": 2, "tp": 2}, 1),
    ({"pp": 2, "dp": 2, "tp": 2}, 1), ({"dp": 2, "fsdp": 2, "tp": 2}, 1), ({"pp": 2, "dp": 4}, 1),
    ({"pp": 2, "cp": 2, "tp": 2}, 1), ({"dp": 2, "pp": 2, "cp": 2}, 1), ({"dp": 7}, 1),
    ({"dp": 4}, 2), ({"fsdp": 8}, 4), ({"dp": 2, "fsdp": 4}, 2), ({"pp": 2, "fsdp": 4}, 2),
    ({"dp": 4, "tp": 2}, 2), ({"fsdp": 4, "cp": 2}, 4), ({"dp": 2, "fsdp": 4}, 8),
)  # fmt: skip


def requests(seed: int, count: int, largest: int) -> Iterator[LayoutRequest]:
    """Jobs of at most `largest` ranks with traffic of all weights."""
    random_ = random.Random(seed)
    fitting = [job for job in JOBS if prod(job[0].values()) <= largest]
    for axes, ep in random_.sample(fitting, min(count, len(fitting))):
        traffic = {axis: 10.0 ** random_.choice((4, 6, 8, 9, 10)) for axis in (*axes, "ep")}
        yield LayoutRequest(axes=axes, ep=ep, traffic=traffic, allow_pcie_tp=random_.random() < 0.2)
