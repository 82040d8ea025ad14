"""A topology in the words of other tools, and read back from them."""

import time
from dataclasses import replace

import pytest
import yaml

from parctl.errors import UsageError
from parctl.topology.discover import read_any
from parctl.topology.export import EXPORTS, export_text
from parctl.topology.export.blocks import hostlist
from parctl.topology.export.labels import HOST, label_value
from parctl.topology.hostlist import expand_hostlist
from parctl.topology.model import Topology
from parctl.topology.synthetic import parse_cluster


def with_tiers(spec: str, per_leaf: int, per_spine: int) -> Topology:
    cluster = parse_cluster(spec)
    nodes = tuple(
        replace(node, tiers=(f"leaf-{i // per_leaf}", f"spine-{i // per_spine}"))
        for i, node in enumerate(cluster.nodes)
    )
    return replace(cluster, tiers=("leaf", "spine"), nodes=nodes)


def places(topology: Topology) -> list[tuple[str, str | None, tuple[str, ...]]]:
    return [(node.name, node.domain, node.tiers) for node in topology.nodes]


@pytest.mark.parametrize("output", EXPORTS)
def test_equal_topologies_give_equal_text(output: str) -> None:
    one, other = parse_cluster("gb200:2x2x4"), parse_cluster("gb200:2x2x4")
    assert export_text(one, output) == export_text(other, output)


def test_slurm_blocks_are_nvlink_domains() -> None:
    assert export_text(parse_cluster("gb200:4x18x4"), "slurm") == (
        "# slurm.conf: TopologyPlugin=topology/block\n"
        "# a block is an NVLink domain: BLOCK=DOMAIN\n"
        "# domain-0=domain-0\n"
        "BlockName=domain-0 Nodes=node-[0-17]\n"
        "# domain-1=domain-1\n"
        "BlockName=domain-1 Nodes=node-[18-35]\n"
        "# domain-2=domain-2\n"
        "BlockName=domain-2 Nodes=node-[36-53]\n"
        "# domain-3=domain-3\n"
        "BlockName=domain-3 Nodes=node-[54-71]\n"
        "BlockSizes=18,36,72\n"
    )


def test_slurm_gets_a_tree_where_there_are_tiers_only() -> None:
    assert export_text(with_tiers("h100:6x8", 2, 4), "slurm") == (
        "# slurm.conf: TopologyPlugin=topology/tree\n"
        "SwitchName=leaf-0 Nodes=node-[0-1]\n"
        "SwitchName=leaf-1 Nodes=node-[2-3]\n"
        "SwitchName=spine-0 Switches=leaf-[0-1]\n"
        "SwitchName=leaf-2 Nodes=node-[4-5]\n"
        "SwitchName=spine-1 Switches=leaf-2\n"
        "SwitchName=cluster Switches=spine-[0-1]\n"
    )


def test_slurm_says_that_the_fabric_is_unknown() -> None:
    text = export_text(parse_cluster("h100:2x8"), "slurm")
    assert "# the fabric above the nodes is unknown: one flat switch" in text
    assert "SwitchName=cluster Nodes=node-[0-1]\n" in text


def test_a_switch_name_under_two_parents_stays_two_switches() -> None:
    cluster = parse_cluster("h100:4x8")
    nodes = tuple(
        replace(node, tiers=("rack 1", f"block/{i // 2}")) for i, node in enumerate(cluster.nodes)
    )
    text = export_text(replace(cluster, tiers=("rack", "block"), nodes=nodes), "slurm")

    assert "SwitchName=rack-1 Nodes=node-[0-1]" in text
    assert "SwitchName=block-1-rack-1 Nodes=node-[2-3]" in text


def test_a_node_name_that_slurm_cannot_read_is_refused() -> None:
    cluster = parse_cluster("h100:1x8")
    odd = replace(cluster, nodes=(replace(cluster.nodes[0], name="a b,c"),))
    with pytest.raises(UsageError, match="node `a b,c`: Slurm node names"):
        export_text(odd, "slurm")


def test_slurm_yaml_holds_blocks_and_the_tree() -> None:
    views = yaml.safe_load(export_text(with_tiers("gb200:2x2x4", 2, 4), "slurm-yaml"))

    assert views == [
        {
            "topology": "nvlink-blocks",
            "cluster_default": True,
            "block": {
                "block_sizes": [2, 4],
                "blocks": [
                    {"block": "domain-0", "nodes": "node-[0-1]"},
                    {"block": "domain-1", "nodes": "node-[2-3]"},
                ],
            },
        },
        {
            "topology": "fabric-tree",
            "cluster_default": False,
            "tree": {
                "switches": [
                    {"switch": "leaf-0", "nodes": "node-[0-1]"},
                    {"switch": "leaf-1", "nodes": "node-[2-3]"},
                    {"switch": "spine-0", "children": "leaf-[0-1]"},
                ]
            },
        },
    ]


def test_a_slurm_tree_is_read_back() -> None:
    cluster = with_tiers("h100:6x8", 2, 4)
    back = read_any(export_text(cluster, "slurm"), "topology.conf")

    assert [(n.name, n.tiers[:2]) for n in back.nodes] == [(n.name, n.tiers) for n in cluster.nodes]


def test_kueue_levels_go_from_far_to_near_with_the_domain_inside_its_tiers() -> None:
    documents = list(yaml.safe_load_all(export_text(with_tiers("gb200:4x2x4", 4, 8), "kueue")))

    assert documents[0]["kind"] == "Topology"
    assert [level["nodeLabel"] for level in documents[0]["spec"]["levels"]] == [
        "fabric.topograph.run/tier-1",
        "fabric.topograph.run/tier-0",
        "accelerator.topograph.run/domain",
        "kubernetes.io/hostname",
    ]
    assert documents[1]["spec"] == {
        "nodeLabels": {"parctl.dev/cluster": "gb200-4x2x4"},
        "topologyName": "gb200-4x2x4",
    }
    assert documents[2]["metadata"] == {
        "name": "node-0",
        "labels": {
            "parctl.dev/cluster": "gb200-4x2x4",
            "fabric.topograph.run/tier-0": "leaf-0",
            "fabric.topograph.run/tier-1": "spine-0",
            "accelerator.topograph.run/domain": "domain-0",
        },
    }


def test_kueue_puts_a_leaf_that_is_smaller_than_a_domain_below_it() -> None:
    documents = list(yaml.safe_load_all(export_text(with_tiers("gb200:2x4x4", 2, 4), "kueue")))
    assert [level["nodeLabel"].partition("/")[2] for level in documents[0]["spec"]["levels"]] == [
        "tier-1",
        "domain",
        "tier-0",
        "hostname",
    ]


def test_kueue_uses_the_labels_that_the_nodes_have() -> None:
    cluster = parse_cluster("gb200:2x2x4")
    nodes = tuple(
        replace(node, tiers=("b1",), sources={"domain": "k8s-label nvidia.com/gpu.clique"})
        for node in cluster.nodes
    )
    tier = "cloud.google.com/gce-topology-block"
    text = export_text(replace(cluster, tiers=(tier,), nodes=nodes), "kueue")

    assert [level["nodeLabel"] for level in next(yaml.safe_load_all(text))["spec"]["levels"]] == [
        tier,
        "nvidia.com/gpu.clique",
        "kubernetes.io/hostname",
    ]


def test_kueue_objects_are_read_back_as_the_same_places() -> None:
    cluster = with_tiers("gb200:4x2x4", 4, 8)
    back = read_any(export_text(cluster, "kueue"), "kueue.yaml")

    assert [(n.name, n.domain) for n in back.nodes] == [(n.name, n.domain) for n in cluster.nodes]
    assert back.tiers[-2:] == ("fabric.topograph.run/tier-0", "fabric.topograph.run/tier-1")
    assert [n.tiers[-2:] for n in back.nodes] == [n.tiers for n in cluster.nodes]


def test_the_hostfile_counts_usable_devices_only() -> None:
    cluster = parse_cluster("h100:2x4")
    hardware = cluster.nodes[1].hardware
    sick = replace(hardware.devices[2], faults=("lost",))
    devices = (*hardware.devices[:2], sick, hardware.devices[3])
    second = replace(cluster.nodes[1], hardware=replace(hardware, devices=devices))

    assert export_text(replace(cluster, nodes=(cluster.nodes[0], second)), "hostfile") == (
        "node-0 slots=4\n"
        "# node-1: gpu 2 left out (fault); set CUDA_VISIBLE_DEVICES=0,1,3 there\n"
        "node-1 slots=3\n"
    )


def test_ray_labels_never_use_rays_own_prefix() -> None:
    labels = yaml.safe_load(export_text(with_tiers("gb200:2x2x4", 2, 4), "ray-labels"))

    assert labels["node-2"] == {
        "parctl.dev/node": "node-2",
        "parctl.dev/product": "gb200",
        "parctl.dev/nvlink-mesh": "4",
        "parctl.dev/nvlink-domain": "domain-1",
        "parctl.dev/tier-0": "leaf-1",
        "parctl.dev/tier-1": "spine-0",
    }


@pytest.mark.parametrize("spec", ["v100:1x8", "h100:3x8", "gb200:2x2x4", "mi300x:1x8", "l40s:1x4"])
def test_nccl_xml_is_read_back_with_the_same_links(spec: str) -> None:
    hardware = parse_cluster(spec).nodes[0].hardware
    back = read_any(export_text(parse_cluster(spec), "nccl-xml"), "topo.xml").nodes[0].hardware

    assert back.nvlink_groups == hardware.nvlink_groups
    assert back.nvlink_cliques == hardware.nvlink_cliques
    assert [d.numa for d in back.devices] == [d.numa for d in hardware.devices]
    assert [(n.name, n.speed_gbit_s, n.numa) for n in back.nics] == [
        (n.name, n.speed_gbit_s, n.numa) for n in hardware.nics
    ]
    for mine, other in zip(hardware.nic_matrix, back.nic_matrix, strict=True):
        # the tree cannot tell NODE from PHB: both mean the same NUMA node
        assert [c.replace("NODE", "PHB") for c in mine] == list(other)


def test_made_up_pci_addresses_are_said_to_be_made_up() -> None:
    text = export_text(parse_cluster("h100:1x2"), "nccl-xml")
    assert text.startswith("<!-- PCI addresses in domain ff00 are made up")

    cluster = parse_cluster("h100:1x1")
    hardware = cluster.nodes[0].hardware
    known = replace(
        hardware,
        devices=(replace(hardware.devices[0], pci="0000:1B:00.0", cpu_affinity="0-3,32"),),
        nics=(),
        nic_matrix=(),
    )
    named = replace(cluster, nodes=(replace(cluster.nodes[0], hardware=known),))
    assert export_text(named, "nccl-xml") == (
        '<system version="1">\n'
        '  <cpu numaid="0" affinity="00000001,0000000f">\n'
        '    <pci busid="0000:1b:00.0" class="0x030200">\n'
        '      <gpu dev="0" rank="0">\n'
        "      </gpu>\n"
        "    </pci>\n"
        "  </cpu>\n"
        "</system>\n"
    )


@pytest.mark.parametrize(
    ("spec", "message"),
    [("h100:1x8+l40s:1x4", "describes one node, but there are 2 kinds"), ("cpu:1x2", "no GPU")],
)
def test_nccl_xml_wants_one_kind_of_gpu_node(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        export_text(parse_cluster(spec), "nccl-xml")


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["a"], "a"),
        (["n1", "n2", "n3"], "n[1-3]"),
        (["n08", "n09", "n10"], "n[08-10]"),
        (["n8", "n9", "n10"], "n[8-10]"),
        (["n1", "n3", "login"], "n[1,3],login"),
        (["r1n1", "r1n2", "r2n1"], "r1n[1-2],r2n1"),
        (["n1", "n01"], "n1,n01"),
    ],
)
def test_hostlists_are_short_and_expand_again(names: list[str], text: str) -> None:
    assert hostlist(names) == text
    assert sorted(expand_hostlist(text, "test")) == sorted(names)


def test_label_values_obey_the_syntax_and_stay_apart() -> None:
    assert label_value("rack-1") == "rack-1"
    long, other = label_value("x" * 80), label_value("x" * 81)
    assert len(long) == len(other) == 63 and long != other
    assert label_value("a b") != label_value("a/b")


def levels_only() -> Topology:
    """What a file with nothing but Kueue's Topology says of a cluster."""
    return Topology(
        name="k", source="k8s k.yaml", tiers=(HOST, "a.io/rack", "a.io/block"), nodes=()
    )


@pytest.mark.parametrize("output", sorted(set(EXPORTS) - {"svg", "html", "kueue"}))
def test_formats_of_nodes_refuse_a_cluster_without_any(output: str) -> None:
    with pytest.raises(UsageError, match=f"names no node, and `-o {output}` is about nodes"):
        export_text(levels_only(), output)


def test_kueue_levels_without_nodes_are_written_back() -> None:
    topology = yaml.safe_load(export_text(levels_only(), "kueue").partition("---")[0])

    keys = [level["nodeLabel"] for level in topology["spec"]["levels"]]
    assert keys == ["a.io/block", "a.io/rack", HOST]


@pytest.mark.parametrize("output", ["svg", "html"])
def test_a_cluster_without_nodes_has_a_picture(output: str) -> None:
    assert "0 nodes, devices unknown" in export_text(levels_only(), output)


def test_kueue_objects_of_thousands_of_nodes_are_written_in_seconds() -> None:
    cluster = parse_cluster("gb200:100x18x4")
    begin = time.process_time()

    text = export_text(cluster, "kueue")

    # about 2 s on a slow core; the bound catches a look at the whole cluster per node
    assert time.process_time() - begin < 8
    assert text.count("kind: Node") == 1800
