"""topograph's models and graphs."""

import json
from pathlib import Path

import pytest

from parctl.errors import UsageError
from parctl.topology.discover import discover
from parctl.topology.model import Node, Topology
from parctl.topology.sources.topograph import looks_like, read_text

DATA = Path(__file__).resolve().parents[4] / "shared/data/topology/net"


def captured(name: str) -> Topology:
    if not (DATA / name).exists():
        pytest.skip("the captured models are not on this machine")
    assert looks_like((DATA / name).read_text())
    return discover(str(DATA / name))


def by_name(topology: Topology) -> dict[str, Node]:
    return {node.name: node for node in topology.nodes}


def test_a_model_of_eight_nodes() -> None:
    topology = captured("topograph-medium.yaml")
    node = by_name(topology)["1301"]

    assert len(topology.nodes) == 8
    assert topology.tiers == ("switch-tier-0", "switch-tier-1", "switch-tier-2")
    assert (node.tiers, node.domain) == (("sw13", "sw22", "sw3"), "nvl3")
    assert node.sources == {"tiers": "topograph", "domain": "topograph"}


def test_a_model_with_gaps() -> None:
    topology = captured("topograph-dual-xclr-irregular.yaml")
    nodes = by_name(topology)

    # 13 full racks of 9 and one of 7 under sw-01; 14 full racks and one of 5 under sw-02
    assert len(topology.nodes) == 13 * 9 + 7 + 14 * 9 + 5
    assert nodes["node0032"].tiers == ("rack-1-04", "sw-01", "core")
    assert "node0031" not in nodes
    assert {node.domain for node in topology.nodes} == {"domain-01", "domain-02"}


def test_a_graph_lists_layers_nearest_first() -> None:
    graph = {
        "instances": [
            {
                "id": "i-1",
                "network_layers": ["leaf-a", "spine-a"],
                "labels": {"accelerator.topograph.run/domain": "nvl-1"},
            },
            {"id": "i-2", "network_layers": ["leaf-b"]},
        ]
    }
    text = json.dumps(graph, indent=1)
    assert looks_like(text)
    topology = read_text(text, "graph.json")

    assert [(node.tiers, node.domain) for node in topology.nodes] == [
        (("leaf-a", "spine-a"), "nvl-1"),
        (("leaf-b", "?"), None),
    ]


def test_a_model_without_nodes_is_refused() -> None:
    with pytest.raises(UsageError, match="names no node"):
        read_text("switches: {a: {switches: [b]}}\nblocks: []\n", "m.yaml")


def test_a_block_without_its_switch_is_refused() -> None:
    with pytest.raises(UsageError, match=r"m.yaml blocks\[0\]: `switch` is missing"):
        read_text("blocks:\n- nodes: [a]\n", "m.yaml")
