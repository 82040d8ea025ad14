"""`parctl topology diff A B`."""

from dataclasses import replace
from pathlib import Path

from parctl.topology.diff import diff_topologies
from parctl.topology.discover import discover
from parctl.topology.model import Topology
from parctl.topology.synthetic import parse_cluster

ROOT = Path(__file__).resolve().parents[2]


def said(before: Topology, after: Topology) -> list[str]:
    return [str(change) for change in diff_topologies(before, after)]


def test_equal_clusters_differ_in_nothing() -> None:
    assert said(parse_cluster("gb200:2x18x4"), parse_cluster("gb200:2x18x4")) == []


def test_added_and_removed_nodes_are_one_line_per_kind() -> None:
    small, large = parse_cluster("h100:2x8"), parse_cluster("h100:2x8+l40s:2x4")

    assert said(small, large) == ["node-2 .. node-3 (2): nodes added: 4 x l40s"]
    assert said(large, small) == ["node-2 .. node-3 (2): nodes removed: 4 x l40s"]


def test_a_gpu_that_lost_its_nvlink_is_told_by_what_it_has_now() -> None:
    broken = discover(str(ROOT / "docs/pictures/b200-gpu2-down.yaml"))
    node = broken.nodes[0]
    links = tuple(
        tuple("X" if i == j else "NV18" for j in range(8)) for i in range(8)
    )  # as it should be
    devices = tuple(replace(device, ecc_errors=None) for device in node.hardware.devices)
    whole_hardware = replace(node.hardware, matrix=links, devices=devices)
    whole = replace(broken, nodes=(replace(node, hardware=whole_hardware),))

    assert said(whole, broken) == [
        "b200-07: gpu 2 ecc_errors: unknown -> 7",
        "b200-07: link of gpu 2 to gpus 0-1,3: NV18 -> NODE",
        "b200-07: link of gpu 2 to gpus 4-7: NV18 -> SYS",
    ]


def test_a_thousand_nodes_that_changed_alike_are_one_change() -> None:
    before = parse_cluster("h100:1000x8")
    hardware = before.nodes[0].hardware
    moved = replace(hardware, nics=(replace(hardware.nics[0], rail=9), *hardware.nics[1:]))
    after = replace(before, nodes=tuple(replace(n, hardware=moved) for n in before.nodes))

    assert said(before, after) == ["node-0 .. node-999 (1,000): nic nic-0 rail: 0 -> 9"]


def test_domains_and_tiers_are_compared() -> None:
    before = parse_cluster("gb200:2x2x4")
    first = replace(before.nodes[0], domain="domain-9")
    nodes = (first, *before.nodes[1:])

    assert said(before, replace(before, nodes=nodes)) == [
        "node-0: NVLink domain: domain-0 -> domain-9"
    ]
    tiered = replace(
        before, tiers=("rack",), nodes=tuple(replace(n, tiers=("r1",)) for n in before.nodes)
    )
    assert said(before, tiered) == ["fabric tiers: none -> rack"]


def test_a_renamed_node_is_known_by_its_gpus() -> None:
    before = parse_cluster("h100:2x2")
    nodes = []
    for node in before.nodes:
        devices = tuple(
            replace(device, uuid=f"GPU-{node.name}-{device.index}")
            for device in node.hardware.devices
        )
        nodes.append(replace(node, hardware=replace(node.hardware, devices=devices)))
    named = replace(before, nodes=tuple(nodes))
    other = replace(named, nodes=tuple(replace(n, name=f"new-{n.name}") for n in named.nodes))

    assert said(named, other) == [
        "new-node-0: name: node-0 -> new-node-0",
        "new-node-1: name: node-1 -> new-node-1",
    ]


def test_where_a_fact_came_from_is_not_a_difference() -> None:
    before = parse_cluster("h100:1x2")
    hardware = replace(before.nodes[0].hardware, sources={"matrix": "nvml"})
    after = replace(before, source="x", nodes=(replace(before.nodes[0], hardware=hardware),))

    assert said(before, after) == []
