"""The engine against brute force: every placement of a small job on a small cluster is tried.

The oracle below shares nothing with the engine but the meaning of a link code and the constants of
the cost: it walks pairs of ranks in plain Python.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import combinations, pairwise, permutations
from math import isclose, prod

import pytest

from parctl.errors import CannotPlaceError
from parctl.topology.cost import (
    ASSUMED_GB_S,
    DOMAIN_LATENCY_S,
    NETWORK_LATENCY_S,
    NODE_LATENCY_S,
)
from parctl.topology.links import BADNESS, link_bandwidth, link_class
from parctl.topology.model import Hardware, LinkClass, Node, Topology
from parctl.topology.placement import LayoutRequest, lay_out
from parctl.topology.synthetic import parse_cluster

LATENCY_S = {"node": NODE_LATENCY_S, "domain": DOMAIN_LATENCY_S, "cluster": NETWORK_LATENCY_S}
NVLINK_GB_S = {"gb200": 900.0}
NETWORK_GB_S = {"h100": 50.0, "l40s": 12.5, "gb200": 50.0, "b200": 50.0, "cpu": None}

Place = tuple[Node, int]


def cut_off(hardware: Hardware, position: int) -> bool:
    """Whether a device has no NVLink although other devices of its node do."""
    codes = [code for row in hardware.matrix for code in row]
    return any(c.startswith("NV") for c in codes) and not any(
        c.startswith("NV") for c in hardware.matrix[position]
    )


def pair_link(a: Place, b: Place, size: int) -> tuple[LinkClass, float | None]:
    (node_a, i), (node_b, j) = a, b
    product = str(node_a.hardware.devices[i].product)
    if node_a is node_b:
        code = node_a.hardware.matrix[i][j]
        return link_class(code), link_bandwidth(product, code, size)
    if node_a.domain is not None and node_a.domain == node_b.domain:
        return LinkClass.NVLINK, NVLINK_GB_S[product]
    return LinkClass.NETWORK, NETWORK_GB_S[product]


def scope_of(group: list[Place]) -> str:
    if len({node.name for node, _ in group}) == 1:
        return "node"
    domains = {node.domain for node, _ in group}
    return "domain" if len(domains) == 1 and None not in domains else "cluster"


def groups_of(places: list[Place], sizes: list[int], position: int) -> Iterator[list[Place]]:
    stride = prod(sizes[position + 1 :])
    for start in range(len(places)):
        if start // stride % sizes[position] == 0:
            yield [places[start + i * stride] for i in range(sizes[position])]


def cost_of(places: list[Place], axes: Mapping[str, int], traffic: Mapping[str, float]) -> float:
    """The documented cost of one placement; infinite when it breaks the hard rule."""
    total = 0.0
    for position, (axis, size) in enumerate(axes.items()):
        if size == 1:
            continue
        links, scopes = [], []
        for group in groups_of(places, list(axes.values()), position):
            pairs = pairwise(group) if axis == "pp" else combinations(group, 2)
            links += [pair_link(a, b, 2 if axis == "pp" else size) for a, b in pairs]
            scopes.append(scope_of(group))
        worst = max(BADNESS[link] for link, _ in links)
        if axis == "tp" and worst > BADNESS[LinkClass.HOST]:
            return float("inf")
        link, bandwidth = min(
            (pair for pair in links if BADNESS[pair[0]] == worst), key=lambda pair: pair[1] or 0.0
        )
        scope = max(scopes, key=list(LATENCY_S).index)
        total += traffic[axis] / ((bandwidth or ASSUMED_GB_S[link]) * 1e9)
        total += (size - 1) * LATENCY_S[scope]
    return total


def placed(topology: Topology, request: LayoutRequest) -> list[Place]:
    """Where the engine puts every mesh coordinate."""
    layout = lay_out(request, topology)
    nodes = {node.name: node for node in topology.nodes}
    return [(nodes[layout.slots[rank].node], layout.slots[rank].gpu) for rank in layout.ranks]


def uneven(spec: str, *sizes: int) -> Topology:
    product = spec.split(":")[0]
    return parse_cluster("+".join(f"{product}:1x{size}" for size in sizes))


def broken(spec: str, *positions: int) -> Topology:
    """A cluster whose first node has lost the NVLinks of some devices."""
    topology = parse_cluster(spec)
    node = topology.nodes[0]
    rows = tuple(
        tuple(
            "SYS" if i != j and (i in positions or j in positions) else code
            for j, code in enumerate(row)
        )
        for i, row in enumerate(node.hardware.matrix)
    )
    first = replace(node, hardware=replace(node.hardware, matrix=rows))
    return replace(topology, nodes=(first, *topology.nodes[1:]))


CLUSTERS = {
    "1 x 6": parse_cluster("h100:1x6"),
    "2 x 3": parse_cluster("h100:2x3"),
    "3 x 2": parse_cluster("h100:3x2"),
    "6 x 1": parse_cluster("h100:6x1"),
    "4 + 2": uneven("h100", 4, 2),
    "1 + 2 + 3": uneven("h100", 1, 2, 3),
    "pcie 2 x 3": parse_cluster("l40s:2x3"),
    "pcie 4 + 1": uneven("l40s", 4, 1),
    "2 domains of 1 x 3": parse_cluster("gb200:2x1x3"),
    "1 domain of 3 x 2": parse_cluster("gb200:1x3x2"),
    "3 domains of 2 x 1": parse_cluster("gb200:3x2x1"),
    "broken 4 + 2": broken("b200:1x4+b200:1x2", 1),
    "broken 5": broken("b200:1x5", 0),
    "cpu 2 x 3": parse_cluster("cpu:2x3"),
}
JOBS: list[dict[str, int]] = [
    {"dp": 2},
    {"dp": 3},
    {"dp": 4},
    {"pp": 5},
    {"dp": 6},
    {"tp": 2},
    {"tp": 3},
    {"tp": 4},
    {"dp": 2, "tp": 2},
    {"tp": 2, "dp": 2},
    {"pp": 2, "tp": 2},
    {"pp": 2, "dp": 2},
    {"fsdp": 3, "tp": 2},
    {"pp": 3, "fsdp": 2},
    {"pp": 2, "tp": 3},
]
TRAFFICS = ({"light": 1e6, "heavy": 1e10}, {"light": 1e10, "heavy": 1e6})


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_cost_equals_the_optimum_over_all_placements(name: str) -> None:
    topology = CLUSTERS[name]
    places = [(n, i) for n in topology.nodes for i in range(len(n.hardware.devices))]
    for axes in JOBS:
        count = prod(axes.values())
        if count > len(places):
            continue
        volumes = [
            {axis: weights["heavy" if i == 0 else "light"] for i, axis in enumerate(axes)}
            for weights in TRAFFICS[: len(axes)]
        ]
        tried = [list(order) for order in permutations(places, count)]
        for traffic in volumes:
            best = min(cost_of(order, axes, traffic) for order in tried)
            request = LayoutRequest(axes=axes, traffic=traffic)
            if best == float("inf"):
                with pytest.raises(CannotPlaceError):
                    lay_out(request, topology)
            else:
                found = cost_of(placed(topology, request), axes, traffic)
                assert isclose(found, best, rel_tol=1e-9), (axes, traffic, found, best)
