"""Slurm's topology.conf and topology.yaml."""

from pathlib import Path

import pytest

from parctl.errors import UsageError
from parctl.topology.model import Topology
from parctl.topology.sources.slurm import looks_like, read_text
from parctl.topology.store import topology_from_json, topology_to_json

DATA = Path(__file__).resolve().parents[4] / "shared/data/topology/net"

TREE = """\
# a comment
SwitchName=s0 Nodes=tux[0-3] LinkSpeed=900
switchname=s1 nodes=tux[4-5],login   # more
SwitchName=s2 Nodes=tux[6,08]
SwitchName=top Switches=s[0-2]
"""


def read(text: str) -> Topology:
    assert looks_like(text)
    return read_text(text, "topology.conf")


def places(topology: Topology) -> dict[str, tuple[str, ...]]:
    return {node.name: node.tiers for node in topology.nodes}


def test_a_tree_counts_its_tiers_from_the_node_up() -> None:
    topology = read(TREE)

    assert topology.tiers == ("switch-tier-0", "switch-tier-1")
    assert [node.name for node in topology.nodes] == [
        *("login", "tux0", "tux1", "tux2", "tux3", "tux4", "tux5", "tux6", "tux08"),
    ]
    assert places(topology)["tux08"] == ("s2", "top")
    assert places(topology)["login"] == ("s1", "top")
    assert topology.nodes[0].sources == {"tiers": "slurm"}
    assert topology.unknown == ("devices of all 9 nodes: topology.conf describes the network only",)


def test_a_shallow_branch_has_unknown_far_tiers() -> None:
    topology = read(TREE + "SwitchName=alone Nodes=x\n")

    assert places(topology)["x"] == ("alone", "?")
    assert "fabric tiers of x: fewer switches above them" in topology.unknown


def test_a_line_may_go_on_after_a_backslash() -> None:
    assert places(read("SwitchName=s \\\n  Nodes=a[1-2]\n")) == {"a1": ("s",), "a2": ("s",)}


def test_blocks_are_joined_to_the_sizes_that_slurm_plans_with() -> None:
    topology = read(
        "BlockName=b1 Nodes=n[1-4]\nBlockName=b2 Nodes=n[5-8]\nBlockName=b3 Nodes=n[9-12]\n"
        "BlockSizes=4,8\n"
    )

    assert topology.tiers == ("block", "block-of-8")
    assert places(topology)["n1"] == ("b1", "b1+1")
    assert places(topology)["n8"] == ("b2", "b1+1")
    assert places(topology)["n12"] == ("b3", "b3+1")
    assert topology.nodes[0].domain is None


def test_what_topograph_wrote_names_the_nvlink_domains() -> None:
    path = DATA / "topograph-expected.slinky-dra-block.conf"
    if not path.exists():
        pytest.skip("the captured Slurm file is not on this machine")
    topology = read(path.read_text())

    assert len(topology.nodes) == 96
    assert topology.tiers == ("block", "block-of-16", "block-of-32")
    first, last = topology.nodes[0], topology.nodes[-1]
    assert (first.name, first.domain, first.tiers[0]) == ("srv1101", "nvl-1-1", "rack11")
    assert (last.name, last.domain, last.tiers[0]) == ("srv6208", "nvl-6-2", "rack62")
    assert first.sources == {"tiers": "slurm", "domain": "topograph"}


YAML = """\
---
- topology: blocks
  cluster_default: false
  block:
    block_sizes: [2, 4]
    blocks:
      - block: b1
        nodes: node[01-02]
      - block: b2
        nodes: [node03, node04]
- topology: tree
  cluster_default: true
  tree:
    switches:
      - switch: root
        children: s[1-2]
      - switch: s1
        nodes: node[01-02]
      - switch: s2
        nodes: node[03-04]
"""


def test_yaml_reads_the_clusters_default() -> None:
    topology = read(YAML)

    assert topology.tiers == ("switch-tier-0", "switch-tier-1")
    assert places(topology)["node03"] == ("s2", "root")
    assert topology.warnings == (
        "topology.conf holds 2 topologies: `tree` is read, the cluster's default; not read: blocks",
    )


def test_yaml_blocks() -> None:
    topology = read(YAML.replace("cluster_default: false", "cluster_default: true"))

    assert topology.tiers == ("block", "block-of-4")
    assert places(topology)["node04"] == ("b2", "b1+1")


def test_a_flat_topology_names_no_node() -> None:
    topology = read("- topology: flat\n  cluster_default: true\n  flat: true\n")

    assert topology.nodes == ()
    assert topology.unknown == ("nodes: a flat topology does not name them",)


def test_yaml_that_was_cut() -> None:
    topology = read(YAML[: YAML.index("children")] + "chil")

    assert "cut in line" in topology.unknown[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SwitchName=a Nodes=n[1-\n", r"topology.conf:1: `n\[1-` is no list of names"),
        ("SwitchName=a Nodes=n[1-x]\n", "found `1-x`, expected a number or a range"),
        ("SwitchName=a Nodes=n[9-1]\n", "has a range of -7 names"),
        ("SwitchName=a Nodes=n[1-99999999]\n", "has a range of 99,999,999 names"),
        ("\nSwitchName=a Nodes=b\nhello world\n", "topology.conf:3: found `hello world`"),
        ("SwitchName=a Switches=a\n", "switch `a` hangs on itself"),
        ("SwitchName=a Switches=b\nSwitchName=b Switches=a Nodes=n\n", "hangs on itself"),
        ("- topology: t\n  ring: {}\n  flat_: 1\n  tree: []\n  block:\n", None),
        ("- topology: t\n  tree:\n    switches:\n      - nodes: a\n", "a switch without a name"),
    ],
)
def test_wrong_files_say_where(text: str, message: str | None) -> None:
    if message is None:
        assert read(text).nodes == ()
        return
    with pytest.raises(UsageError, match=message):
        read(text)


def test_a_node_on_two_switches_is_said() -> None:
    topology = read("SwitchName=a Nodes=n\nSwitchName=b Nodes=n\n")

    assert places(topology) == {"n": ("a",)}
    assert topology.warnings == ("n: hangs on several switches; the first one named is used",)


def test_switches_without_a_node_are_said_and_read_back() -> None:
    topology = read("SwitchName=leaf Nodes=\n")

    assert (topology.nodes, topology.unknown) == ((), ("nodes: the text names none",))
    assert topology_from_json(topology_to_json(topology)) == topology


def test_what_scontrol_shows_is_the_same_tree() -> None:
    topology = read(
        "SwitchName=leaf1 Level=0 LinkSpeed=1 Nodes=tux[0-1]\n"
        "SwitchName=leaf2 Level=0 LinkSpeed=1 Nodes=tux[2-3]\n"
        "SwitchName=spine Level=1 LinkSpeed=1 Nodes=tux[0-3] Switches=leaf[1-2]\n"
    )

    assert places(topology) == {
        "tux0": ("leaf1", "spine"),
        "tux1": ("leaf1", "spine"),
        "tux2": ("leaf2", "spine"),
        "tux3": ("leaf2", "spine"),
    }
    assert topology.warnings == ()
