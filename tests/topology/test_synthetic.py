"""Clusters written as a line of text."""

import pytest

from parctl.errors import UsageError
from parctl.topology.discover import discover
from parctl.topology.synthetic import parse_cluster


def test_h100_64x8_is_64_nodes_of_8_fully_meshed_gpus() -> None:
    cluster = parse_cluster("h100:64x8")

    assert (len(cluster.nodes), cluster.num_devices) == (64, 512)
    assert cluster.nodes[0].name == "node-0"
    assert cluster.nodes[63].hardware is cluster.nodes[0].hardware
    assert cluster.nodes[0].hardware.matrix[0] == ("X", *["NV18"] * 7)
    assert [nic.rail for nic in cluster.nodes[0].hardware.nics] == list(range(8))
    assert cluster.nodes[0].hardware.nics[0].speed_gbit_s == 400
    assert cluster.nodes[0].domain is None


def test_gb200_4x18x4_is_4_domains_of_18_nodes_of_4() -> None:
    cluster = parse_cluster("gb200:4x18x4")

    assert cluster.num_devices == 288
    assert [node.domain for node in cluster.nodes[17:19]] == ["domain-0", "domain-1"]
    assert len({node.domain for node in cluster.nodes}) == 4


def test_clusters_are_joined_by_plus() -> None:
    cluster = parse_cluster("h100:2x8+l40s:1x4")

    assert [len(node.hardware.devices) for node in cluster.nodes] == [8, 8, 4]
    assert [node.name for node in cluster.nodes] == ["node-0", "node-1", "node-2"]
    assert cluster.nodes[2].hardware.matrix[0] == ("X", "NODE", "SYS", "SYS")


def test_cpu_devices_share_their_node() -> None:
    hardware = parse_cluster("cpu:2x4").nodes[0].hardware

    assert hardware.kind == "cpu"
    assert hardware.matrix[0] == ("X", "HOST", "HOST", "HOST")
    assert hardware.nics == ()


def test_what_a_line_does_not_say_is_listed_as_unknown() -> None:
    assert "fabric tiers" in parse_cluster("h100:2x8").unknown[0]
    assert "NVLink domains of `gb200:8x4`" in parse_cluster("gb200:8x4").unknown[1]
    assert "network of `cpu:1x2`" in parse_cluster("cpu:1x2").unknown[1]
    assert "NVLink bridges" in parse_cluster("h100-pcie:1x2").unknown[1]


def test_a_capital_x_is_an_x() -> None:
    assert parse_cluster("h100:2X8").nodes == parse_cluster("h100:2x8").nodes
    assert parse_cluster("GB200:2X18x4").nodes == parse_cluster("gb200:2x18x4").nodes


def test_the_hint_is_a_sentence() -> None:
    with pytest.raises(UsageError) as error:
        discover("h100")

    assert error.value.hint == (
        "did you mean `h100:16x8`? Otherwise use `local`, a topology file "
        "(`parctl topology -o json > FILE`), or e.g. `h100:16x8`"
    )


@pytest.mark.parametrize(
    ("spec", "found", "hint"),
    [
        ("h100:\uff12x8", "expected PRODUCT:NODESxDEVICES", "h100:16x8"),
        ("h100:\u0662x8", "expected PRODUCT:NODESxDEVICES", "h100:16x8"),
        ("h10:2x8", "unknown product `h10`", "h100"),
        ("h100:0x8", "`h100:0x8` has a 0", "at least 1"),
        ("h100:2x9", "9 devices per node, but h100 nodes have 8 at most", "h100:NODESx8"),
        ("h100:99999999x8", "above 1,048,576", None),
        ("h100:" + "9" * 5000 + "x8", "above 1,048,576", None),
        ("h100:1000000x8", "8,000,000 devices", None),
        ("h100:600000x1+h100:600000x1", "1,200,000 devices, at most 1,048,576", None),
        ("h100:2x8x8", "no NVLink domain larger than a node", "gb200"),
        ("gb200:1x40x4", "40 nodes x 4 = 160 GPUs per NVLink domain", "18 nodes of 4"),
        ("v100:1x12", "1 to 8 (cube mesh) or 16 (NVSwitch)", None),
        ("h100:2x", "expected PRODUCT:NODESxDEVICES", "h100:16x8"),
        ("h100:2x8+", "found ``", None),
        ("h100:2xx8", "expected PRODUCT:NODESxDEVICES", None),
        ("h100", "no cluster `h100`", "`h100:16x8`?"),
        ("loca", "no cluster `loca`", "did you mean `local`?"),
        ("missing.json", "cannot be read: No such file", "parctl topology -o json"),
    ],
)
def test_wrong_clusters_are_refused_in_words(spec: str, found: str, hint: str | None) -> None:
    with pytest.raises(UsageError) as error:
        discover(spec)

    assert found in error.value.message
    assert hint is None or hint in (error.value.hint or "")
    assert len(error.value.message) < 300
