"""Layouts on known clusters, with expectations worked out by hand."""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from parctl.errors import CannotPlaceError, UsageError
from parctl.topology.layout import Layout, Proof
from parctl.topology.model import Hardware, Topology
from parctl.topology.placement import LayoutRequest, largest_tp, lay_out
from parctl.topology.synthetic import parse_cluster


def place(cluster: str | Topology, axes: Mapping[str, int], **options: Any) -> Layout:
    topology = parse_cluster(cluster) if isinstance(cluster, str) else cluster
    return lay_out(LayoutRequest(axes=axes, **options), topology)


def proof(layout: Layout, axis: str) -> Proof:
    return next(proof for proof in layout.proofs if proof.axis == axis)


def proven(layout: Layout, axis: str) -> tuple[str, str, int]:
    found = proof(layout, axis)
    return found.worst_link, found.scope, found.nodes_per_group


def without_nvlink(hardware: Hardware, position: int) -> Hardware:
    """The same node after one device has lost all its links."""
    rows = [list(row) for row in hardware.matrix]
    for other in range(len(rows)):
        if other != position:
            rows[position][other] = rows[other][position] = "SYS"
    return replace(hardware, matrix=tuple(tuple(row) for row in rows))


def with_fault(hardware: Hardware, position: int) -> Hardware:
    devices = list(hardware.devices)
    devices[position] = replace(devices[position], faults=("fell off the bus",))
    return replace(hardware, devices=tuple(devices))


def with_hardware(topology: Topology, *per_node: Hardware) -> Topology:
    nodes = [replace(n, hardware=h) for n, h in zip(topology.nodes, per_node, strict=True)]
    return replace(topology, nodes=tuple(nodes))


BROKEN_B200 = with_hardware(
    parse_cluster("b200:1x8"), without_nvlink(parse_cluster("b200:1x8").nodes[0].hardware, 2)
)


@pytest.mark.parametrize("cluster", ["h100:8x8", "h100:16x4", "gb200:1x16x4"])
def test_dp4_pp4_tp4_is_the_textbook_grid(cluster: str) -> None:
    layout = place(cluster, {"dp": 4, "pp": 4, "tp": 4})

    assert layout.ranks == tuple(range(64))
    assert layout.groups("tp")[:3] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert layout.groups("pp")[0] == [0, 4, 8, 12]
    assert layout.groups("dp")[0] == [0, 16, 32, 48]  # replica 1 begins at rank 16
    assert layout.coordinates(16) == {"dp": 1, "pp": 0, "tp": 0}


def test_llama_70b_tp8_stays_in_a_node_and_fsdp16_crosses() -> None:
    layout = place("h100:16x8", {"fsdp": 16, "tp": 8}, sp=True)

    assert proven(layout, "tp") == ("nvlink", "node", 1)
    assert proof(layout, "tp").bandwidth == 450
    assert proven(layout, "fsdp") == ("network", "cluster", 16)
    assert proof(layout, "fsdp").bandwidth == 50  # 400 Gbit/s per GPU
    # rails: rank i of every node meets its like
    assert {slot.local_rank for slot in layout.slots if slot.rank in layout.groups("fsdp")[3]} == {
        3
    }


def test_gpt3_every_tp_group_is_one_node_and_pp_and_dp_cross() -> None:
    layout = place("h100:128x8", {"pp": 8, "dp": 16, "tp": 8})
    node_of = [slot.node for slot in layout.slots]

    assert all(len({node_of[rank] for rank in group}) == 1 for group in layout.groups("tp"))
    assert len(layout.groups("tp")) == 128
    for axis, size in (("pp", 8), ("dp", 16)):
        assert proven(layout, axis) == ("network", "cluster", size)
        assert all(len({node_of[r] for r in group}) == size for group in layout.groups(axis))


def test_ranks_and_slots_are_numbered_as_torchrun_does() -> None:
    topology = parse_cluster("h100:1x2+h100:1x8+h100:1x4")

    layout = place(topology, {"dp": 14})

    assert [(s.node, s.node_rank, s.local_rank, s.gpu) for s in layout.slots[1:4]] == [
        ("node-0", 0, 1, 1),
        ("node-1", 1, 0, 0),
        ("node-1", 1, 1, 1),
    ]
    assert layout.slots[13].local_rank == 3
    assert [slot.rank for slot in layout.slots] == list(range(14))


def test_node_names_sort_as_numbers() -> None:
    layout = place("h100:12x1", {"dp": 12})

    assert [slot.node for slot in layout.slots][1:3] == ["node-1", "node-2"]


def test_tp_is_refused_on_pcie_and_allowed_by_name() -> None:
    with pytest.raises(CannotPlaceError) as error:
        place("l40s:16x8", {"fsdp": 16, "tp": 8})
    assert error.value.message == (
        "tp(8) needs NVLink between all GPUs of a group, but l40s GPUs are joined by PCIe only"
    )
    assert "`parallelism.allow_pcie_tp: true`" in (error.value.hint or "")

    layout = place("l40s:16x8", {"fsdp": 16, "tp": 8}, allow_pcie_tp=True)
    assert proven(layout, "tp") == ("pcie", "node", 1)


def test_tp16_is_refused_on_h100_with_the_arithmetic() -> None:
    with pytest.raises(CannotPlaceError) as error:
        place("h100:16x8", {"fsdp": 8, "tp": 16})

    assert error.value.message == "tp(16) > 8 GPUs per NVLink domain"
    assert error.value.hint == (
        "set tp to 8 or less, or set `parallelism.allow_cross_node_tp: true`"
    )


def test_tp16_across_nodes_is_made_of_whole_nodes() -> None:
    layout = place("h100:16x8", {"fsdp": 8, "tp": 16}, allow_cross_node_tp=True)

    assert proven(layout, "tp") == ("network", "cluster", 2)
    assert layout.groups("tp")[0] == list(range(16))


def test_tp16_fits_a_rack_scale_domain() -> None:
    layout = place("gb200:2x18x4", {"fsdp": 8, "tp": 16})

    assert proven(layout, "tp") == ("nvlink", "domain", 4)
    assert proof(layout, "tp").bandwidth == 900
    assert "counts as one node" in proof(layout, "tp").reason
    assert proven(layout, "fsdp") == ("network", "cluster", 8)
    assert any(line.startswith("unused: 16 GPUs") for line in layout.explain)


def test_strict_node_forbids_a_domain_wider_than_a_node() -> None:
    with pytest.raises(CannotPlaceError) as error:
        place("gb200:2x18x4", {"fsdp": 8, "tp": 16}, strict_node=True)

    assert error.value.message == "tp(16) > 4 GPUs per node (strict_node)"
    assert "`parallelism.strict_node: false`" in (error.value.hint or "")


def test_axes_with_much_traffic_stay_in_the_domain() -> None:
    # 2 domains of 8 GPUs: fsdp fits beside tp in one, dp crosses
    layout = place("gb200:2x2x4", {"dp": 2, "fsdp": 2, "tp": 4})

    assert proven(layout, "tp") == ("nvlink", "node", 1)
    assert proven(layout, "fsdp") == ("nvlink", "domain", 2)
    assert proven(layout, "dp") == ("network", "cluster", 2)


def test_dgx_1v_tp4_uses_the_two_quads_and_tp8_is_refused() -> None:
    layout = place("v100:1x8", {"dp": 2, "tp": 4})

    assert [[layout.slots[r].gpu for r in g] for g in layout.groups("tp")] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
    ]
    assert proven(layout, "tp") == ("nvlink", "node", 1)
    with pytest.raises(CannotPlaceError, match=r"tp\(8\) > 4 GPUs per full NVLink mesh"):
        place("v100:1x8", {"tp": 8})


def test_dgx_1v_tp2_takes_the_double_links() -> None:
    layout = place("v100:1x8", {"dp": 4, "tp": 2})

    assert layout.groups("tp") == [[0, 3], [1, 2], [4, 7], [5, 6]]
    assert proof(layout, "tp").bandwidth == 50


def test_tp_groups_avoid_a_gpu_with_dead_nvlink() -> None:
    layout = place(BROKEN_B200, {"tp": 4})

    assert [slot.gpu for slot in layout.slots] == [0, 1, 3, 4]
    assert "gpu 2 of node-0: no NVLink, so in no tp group" in layout.explain
    with pytest.raises(CannotPlaceError, match="hold 1"):
        place(BROKEN_B200, {"dp": 2, "tp": 4})


def test_a_gpu_with_dead_nvlink_is_used_when_nothing_else_is_left() -> None:
    seven = place(BROKEN_B200, {"dp": 7})
    eight = place(BROKEN_B200, {"dp": 8})

    assert proven(seven, "dp") == ("nvlink", "node", 1)
    assert 2 not in [slot.gpu for slot in seven.slots]
    assert proven(eight, "dp") == ("pcie", "node", 1)


def test_a_device_with_a_fault_is_never_used() -> None:
    good = parse_cluster("h100:2x4")
    topology = with_hardware(good, with_fault(good.nodes[0].hardware, 1), good.nodes[1].hardware)

    layout = place(topology, {"dp": 7})

    assert [slot.gpu for slot in layout.slots] == [0, 2, 3, 0, 1, 2, 3]
    assert [slot.local_rank for slot in layout.slots] == [0, 1, 2, 0, 1, 2, 3]
    assert "node-0 gpu 1 is not used: fell off the bus" in layout.explain
    with pytest.raises(CannotPlaceError, match=r"cluster has 8 GPUs, of which this job can use 7"):
        place(topology, {"dp": 8})


def test_uneven_nodes_hold_as_many_tp_groups_as_fit() -> None:
    layout = place("h100:1x8+h100:1x6+h100:1x4", {"dp": 4, "tp": 4})

    assert [slot.node for slot in layout.slots][::4] == ["node-0", "node-0", "node-1", "node-2"]
    assert [s.gpu for s in layout.slots if s.node == "node-1"] == [0, 1, 2, 3]


def test_pcie_nodes_are_passed_over_for_tp() -> None:
    layout = place("l40s:2x8+h100:2x8", {"dp": 2, "tp": 8})

    assert {slot.node for slot in layout.slots} == {"node-2", "node-3"}
    assert layout.slots[0].node_rank == 0
    assert any("PCIe only" in line for line in layout.explain)


def test_one_product_for_the_whole_job_where_that_is_possible() -> None:
    layout = place("v100:2x4+h100:2x4", {"dp": 8})
    mixed = place("v100:2x4+h100:2x4", {"dp": 16})

    assert {slot.node for slot in layout.slots} == {"node-2", "node-3"}  # faster links
    assert len({slot.node for slot in mixed.slots}) == 4


def test_cpus_are_not_mixed_with_gpus() -> None:
    with pytest.raises(
        CannotPlaceError, match=r"dp\(3\) = 3, cluster has 4 GPUs, of which this job"
    ):
        place("cpu:1x2+h100:1x2", {"dp": 3})


def test_cpu_devices_of_one_node_may_hold_tp() -> None:
    layout = place("cpu:1x4", {"fsdp": 2, "tp": 2}, sp=True)

    assert proven(layout, "tp") == ("host", "node", 1)
    assert proof(layout, "tp").bandwidth is None
    assert layout.groups("tp") == [[0, 1], [2, 3]]
    with pytest.raises(CannotPlaceError, match=r"tp\(4\) > 2 CPU devices per node"):
        place("cpu:2x2", {"tp": 4})


def unknown_links(cluster: str, product: str | None) -> Topology:
    topology = parse_cluster(cluster)
    node = topology.nodes[0]
    size = range(len(node.hardware.devices))
    hardware = replace(
        node.hardware,
        devices=tuple(replace(d, product=product) for d in node.hardware.devices),
        matrix=tuple(tuple("X" if i == j else "?" for j in size) for i in size),
    )
    return with_hardware(topology, *[hardware] * len(topology.nodes))


def test_unknown_links_are_read_from_the_table_of_products() -> None:
    layout = place(unknown_links("h100:1x8", "h100"), {"tp": 8})

    assert proven(layout, "tp") == ("nvlink", "node", 1)
    assert any("from the table of products" in line for line in layout.explain)
    with pytest.raises(CannotPlaceError, match="PCIe only"):
        place(unknown_links("h100:1x8", "l40s"), {"tp": 8})
    with pytest.raises(CannotPlaceError, match=r"tp\(8\) > 4 GPUs"):
        place(unknown_links("h100:1x8", "v100"), {"tp": 8})


def test_unknown_links_of_an_unknown_product_are_accepted_with_a_warning() -> None:
    layout = place(unknown_links("h100:2x4", "future-9000"), {"dp": 2, "tp": 4})

    assert proven(layout, "tp") == ("unknown", "node", 1)
    assert proof(layout, "tp").bandwidth is None
    assert any(line.startswith("warning: links between future-9000") for line in layout.explain)


def test_too_few_devices_shows_the_arithmetic_and_the_largest_that_fits() -> None:
    with pytest.raises(CannotPlaceError) as error:
        place("h100:6x8", {"dp": 4, "pp": 2, "tp": 8})

    assert error.value.message == "dp(4) x pp(2) x tp(8) = 64, cluster has 48 GPUs"
    assert error.value.hint == (
        "the largest that fits: dp(3) x pp(2) x tp(8) = 48; or add 2 nodes of 8 h100"
    )


def test_enough_devices_but_too_few_meshes() -> None:
    with pytest.raises(CannotPlaceError) as error:
        place("h100:6x8", {"dp": 16, "tp": 3})

    assert error.value.message == (
        "dp(16) x tp(3) = 48 needs 16 groups of tp(3), but the full meshes of this cluster "
        "(48 GPUs) hold 12"
    )
    assert error.value.hint == (
        "the largest that fits: dp(12) x tp(3) = 36; or set `parallelism.allow_cross_node_tp: "
        "true`; or add 2 nodes of 8 h100"
    )


@pytest.mark.parametrize("axes", [{}, {"dp": 0}, {"dp": -1, "tp": 2}])
def test_impossible_sizes_are_usage_errors(axes: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        place("h100:1x8", axes)


def test_tp_stays_in_a_mesh_even_when_the_recipe_puts_it_outermost() -> None:
    layout = place("h100:2x4", {"tp": 4, "dp": 2})

    assert layout.groups("tp") == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert layout.ranks == (0, 4, 1, 5, 2, 6, 3, 7)


def test_an_axis_that_does_not_divide_the_node_leaves_devices_unused() -> None:
    # 6 GPUs per node hold cp(2) x tp(2) = 4: 2 stay idle rather than cp crossing the network
    traffic = {"dp": 1e9, "cp": 2e9, "tp": 1e10}

    layout = place("h100:2x6", {"dp": 2, "cp": 2, "tp": 2}, traffic=traffic)

    assert proven(layout, "cp") == ("nvlink", "node", 1)
    assert [slot.gpu for slot in layout.slots] == [0, 1, 2, 3, 0, 1, 2, 3]


def test_given_traffic_decides_which_axis_gets_the_node() -> None:
    axes = {"pp": 2, "dp": 2}

    by_dp = place("h100:2x2", axes, traffic={"pp": 1e6, "dp": 1e9})
    by_pp = place("h100:2x2", axes, traffic={"pp": 1e9, "dp": 1e6})

    assert (proof(by_dp, "dp").scope, proof(by_dp, "pp").scope) == ("node", "cluster")
    assert (proof(by_pp, "dp").scope, proof(by_pp, "pp").scope) == ("cluster", "node")
    assert by_pp.groups("pp") == [[0, 1], [2, 3]]


def blocks_of(topology: Topology, size: int) -> Topology:
    """The same nodes with a fabric tier: `size` nodes per block."""
    nodes = [replace(n, tiers=(f"block-{i // size}",)) for i, n in enumerate(topology.nodes)]
    return replace(topology, tiers=("block",), nodes=tuple(nodes))


def test_a_job_that_fits_one_fabric_block_stays_in_it() -> None:
    # blocks of 2 and 3 nodes: only the second holds three
    topology = blocks_of(parse_cluster("h100:5x1"), 2)
    nodes = [replace(n, tiers=("b0" if i < 2 else "b1",)) for i, n in enumerate(topology.nodes)]

    layout = place(replace(topology, nodes=tuple(nodes)), {"dp": 3})

    assert [slot.node for slot in layout.slots] == ["node-2", "node-3", "node-4"]


def test_the_busier_axis_stays_in_the_block() -> None:
    topology = blocks_of(parse_cluster("h100:4x1"), 2)

    layout = place(topology, {"pp": 2, "dp": 2}, traffic={"pp": 0.0, "dp": 0.0})

    assert {frozenset(g) for g in layout.groups("dp")} == {frozenset({0, 1}), frozenset({2, 3})}


def test_nodes_of_a_block_need_not_be_neighbours_by_name() -> None:
    topology = parse_cluster("h100:4x1")
    nodes = [replace(n, tiers=(f"b{i % 2}",)) for i, n in enumerate(topology.nodes)]
    topology = replace(topology, tiers=("block",), nodes=tuple(nodes))

    layout = place(topology, {"pp": 2, "dp": 2})

    # ranks keep the order of names, the groups follow the blocks
    assert [slot.node for slot in layout.slots] == ["node-0", "node-1", "node-2", "node-3"]
    assert layout.groups("dp") == [[0, 2], [1, 3]]


def test_a_domain_across_blocks_wins_over_the_tier() -> None:
    topology = parse_cluster("gb200:1x4x4")
    nodes = [replace(n, tiers=(f"b{i // 2}",)) for i, n in enumerate(topology.nodes)]

    layout = place(replace(topology, tiers=("block",), nodes=tuple(nodes)), {"tp": 16})

    assert proven(layout, "tp") == ("nvlink", "domain", 4)
    assert any("tier block is not used" in line for line in layout.explain)


def test_one_rank_needs_no_link() -> None:
    layout = place("h100:1x8", {"tp": 1})

    assert proven(layout, "tp") == ("device", "device", 1)
    assert layout.num_nodes == 1


@pytest.mark.parametrize(
    ("cluster", "options", "largest"),
    [
        ("h100:2x8", {}, 8),
        ("h100:2x8", {"allow_cross_node_tp": True}, 16),
        ("v100:1x8", {}, 4),
        ("v100:1x8", {"allow_pcie_tp": True}, 8),
        ("l40s:2x8", {}, 1),
        ("l40s:2x8", {"allow_pcie_tp": True}, 8),
        ("gb200:2x18x4", {}, 72),
        ("gb200:2x18x4", {"strict_node": True}, 4),
        ("cpu:2x4", {}, 4),
        ("h100:1x4+l40s:1x8", {}, 4),
    ],
)
def test_largest_tp(cluster: str, options: dict[str, bool], largest: int) -> None:
    flags = {"allow_pcie_tp": False, "allow_cross_node_tp": False, "strict_node": False, **options}

    assert largest_tp(parse_cluster(cluster), **flags) == largest


def test_largest_tp_of_a_broken_node() -> None:
    none = {"allow_pcie_tp": False, "allow_cross_node_tp": False, "strict_node": False}

    assert largest_tp(BROKEN_B200, **none) == 7


def test_131072_gpus_are_laid_out_in_about_a_second() -> None:
    topology = parse_cluster("h100:16384x8")
    begin = time.process_time()

    layout = place(topology, {"pp": 16, "dp": 8, "fsdp": 128, "tp": 8})

    # 0.4 s on a slow core; the bound catches quadratic work, not a busy machine
    assert time.process_time() - begin < 5
    assert layout.world_size == 131_072
    assert proven(layout, "tp") == ("nvlink", "node", 1)
