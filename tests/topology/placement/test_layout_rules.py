"""The rules beyond the hard one: what fills a node, where experts live, which nodes take part."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from parctl.errors import CannotPlaceError, UsageError
from parctl.topology.layout import Layout, Proof
from parctl.topology.model import Hardware, Topology
from parctl.topology.placement import LayoutRequest, lay_out
from parctl.topology.synthetic import parse_cluster


def place(cluster: str | Topology, axes: Mapping[str, int], **options: Any) -> Layout:
    topology = parse_cluster(cluster) if isinstance(cluster, str) else cluster
    return lay_out(LayoutRequest(axes=axes, **options), topology)


def proof(layout: Layout, axis: str) -> Proof:
    return next(proof for proof in layout.proofs if proof.axis == axis)


def spread(layout: Layout, axis: str) -> list[list[int]]:
    """How many ranks of every group sit on each node that it touches."""
    result = []
    for group in layout.groups(axis):
        nodes = [layout.slots[rank].node for rank in group]
        result.append([nodes.count(node) for node in dict.fromkeys(nodes)])
    return result


def with_matrix(topology: Topology, codes: Mapping[frozenset[int], str], rest: str) -> Topology:
    """The same nodes with pairs joined as told."""

    def rewired(hardware: Hardware) -> Hardware:
        size = range(len(hardware.devices))
        rows = tuple(
            tuple("X" if i == j else codes.get(frozenset({i, j}), rest) for j in size) for i in size
        )
        return replace(hardware, matrix=rows)

    nodes = [replace(n, hardware=rewired(n.hardware)) for n in topology.nodes]
    return replace(topology, nodes=tuple(nodes))


def with_tiers(topology: Topology, *blocks: str) -> Topology:
    nodes = [replace(n, tiers=(b,)) for n, b in zip(topology.nodes, blocks, strict=True)]
    return replace(topology, tiers=("block",), nodes=tuple(nodes))


# fsdp fills what tp leaves


def test_fsdp_fills_the_node_before_it_crosses() -> None:
    layout = place("h100:4x8", {"fsdp": 16, "tp": 2})

    assert spread(layout, "fsdp") == [[4, 4, 4, 4]] * 2
    assert proof(layout, "fsdp").reason == (
        "crosses nodes along one rail, over the network: 4 ranks of a group in each node, "
        "all that fit beside the axes inside it"
    )


def test_the_shard_axis_of_hsdp_fills_nodes_and_replicas_cross() -> None:
    # by cost alone dp(2) would take the node, for fsdp(16) has to cross anyway
    layout = place("h100:4x8", {"dp": 2, "fsdp": 16})

    assert spread(layout, "fsdp") == [[8, 8]] * 2
    assert spread(layout, "dp") == [[1, 1]] * 16
    inverted = place("h100:4x8", {"fsdp": 16, "dp": 2})
    assert spread(inverted, "fsdp") == [[8, 8]] * 2
    assert "what tp leaves of a node belongs to fsdp first" in proof(inverted, "dp").reason


def test_hsdp_shards_inside_the_node_where_they_fit() -> None:
    layout = place("h100:4x8", {"dp": 4, "fsdp": 8})

    assert spread(layout, "fsdp") == [[8]] * 4
    assert proof(layout, "fsdp").scope == "node"
    assert spread(layout, "dp") == [[1, 1, 1, 1]] * 8


def test_pipeline_stages_do_not_take_the_node_from_fsdp() -> None:
    layout = place("h100:4x8", {"pp": 2, "fsdp": 16}, traffic={"pp": 1e12, "fsdp": 1e6})

    assert spread(layout, "fsdp") == [[8, 8]] * 2
    assert proof(layout, "pp").scope == "cluster"


def test_fsdp_that_divides_no_node_fills_it_in_turn() -> None:
    # 24 GPUs, fsdp(6): whole groups fit no three nodes of 8, so groups follow one another
    layout = place("h100:3x8", {"dp": 4, "fsdp": 6})

    assert spread(layout, "fsdp") == [[6], [2, 4], [4, 2], [6]]


def test_fsdp_fills_a_rack_scale_domain_and_its_nodes() -> None:
    layout = place("gb200:2x4x4", {"dp": 2, "fsdp": 16})

    assert spread(layout, "fsdp") == [[4, 4, 4, 4]] * 2
    assert (proof(layout, "fsdp").worst_link, proof(layout, "fsdp").scope) == ("nvlink", "domain")
    assert proof(layout, "dp").scope == "cluster"


def test_a_tp_group_wider_than_a_node_fills_its_nodes() -> None:
    layout = place("gb200:2x4x4", {"dp": 2, "fsdp": 2, "tp": 8})

    assert spread(layout, "tp") == [[4, 4]] * 4


def test_context_parallel_stays_in_the_node_when_fsdp_crosses_anyway() -> None:
    layout = place("h100:4x8", {"fsdp": 16, "cp": 2})

    assert spread(layout, "cp") == [[2]] * 16
    assert spread(layout, "fsdp") == [[4, 4, 4, 4]] * 2


# expert parallelism


def ep_proof(cluster: str, axes: Mapping[str, int], **options: Any) -> Proof:
    return proof(place(cluster, axes, **options), "ep")


def test_experts_stay_in_the_node_while_they_fit() -> None:
    found = ep_proof("h100:4x8", {"fsdp": 32}, ep=8)

    assert (found.scope, found.worst_link, found.nodes_per_group) == ("node", "nvlink", 1)
    assert found.reason == (
        "direct all-to-all inside one node, over NVLink: ep(8) ranks fit its 8 devices"
    )


def test_experts_beyond_the_node_use_hierarchical_all_to_all() -> None:
    found = ep_proof("h100:16x8", {"dp": 2, "fsdp": 64}, ep=64)

    assert (found.scope, found.worst_link, found.nodes_per_group) == ("cluster", "network", 8)
    assert found.reason == (
        "spans 8 nodes along one rail, hierarchical all-to-all: inside the node first, then over "
        "the network; ep(64) ranks > 8 devices of a node"
    )


def test_experts_beside_tp_count_its_ranks() -> None:
    found = ep_proof("h100:4x8", {"fsdp": 4, "tp": 8}, ep=4)

    assert found.scope == "cluster"
    assert "ep(4) x tp(8) = 32 ranks > 8 devices of a node" in found.reason


def test_sixty_four_experts_fit_an_nvl72_rack() -> None:
    found = ep_proof("gb200:2x18x4", {"dp": 2, "fsdp": 64}, ep=64)

    assert (found.scope, found.worst_link, found.nodes_per_group) == ("domain", "nvlink", 16)
    assert found.reason == (
        "direct all-to-all inside one rack-scale NVLink domain, over NVLink: ep(64) ranks fit "
        "its 72 devices"
    )


def test_experts_that_fit_a_node_but_not_everywhere_say_so() -> None:
    # three nodes of 6: only three groups of four fit whole, four are asked for
    found = ep_proof("h100:3x6", {"dp": 16}, ep=4)

    assert found.scope == "cluster"
    assert "not every node has 4 devices free for a whole group" in found.reason


def test_experts_go_before_heavier_traffic() -> None:
    layout = place("h100:2x4", {"pp": 2, "dp": 4}, ep=4, traffic={"pp": 1e12, "dp": 1.0, "ep": 1.0})

    assert proof(layout, "ep").scope == "node"


# links of several kinds inside a node


def test_pairs_are_formed_under_one_pcie_switch() -> None:
    pairs = {frozenset({0, 2}): "PIX", frozenset({1, 3}): "PIX"}
    layout = place(with_matrix(parse_cluster("l40s:1x4"), pairs, "SYS"), {"pp": 2, "dp": 2})

    assert layout.groups("dp") == [[0, 2], [1, 3]]


def test_busier_pairs_get_the_bridges() -> None:
    bridges = {frozenset({0, 1}): "NV4", frozenset({2, 3}): "NV4"}
    topology = with_matrix(parse_cluster("a100-pcie-80g:1x4"), bridges, "SYS")

    by_pp = place(topology, {"pp": 2, "dp": 2}, traffic={"pp": 1e10, "dp": 1e6})
    by_dp = place(topology, {"pp": 2, "dp": 2}, traffic={"pp": 1e6, "dp": 1e10})

    assert by_pp.groups("pp") == [[0, 1], [2, 3]]
    assert by_dp.groups("dp") == [[0, 1], [2, 3]]


def test_double_links_of_a_dgx_1v_go_to_the_busier_axis() -> None:
    topology = parse_cluster("v100:1x8")
    axes = {"pp": 2, "dp": 2, "tp": 2}

    layout = place(topology, axes, traffic={"pp": 1e6, "dp": 1e8, "tp": 1e10})

    nv2 = topology.nodes[0].hardware.matrix
    assert all(nv2[a][b] == "NV2" for a, b in layout.groups("tp"))
    assert all(nv2[a][b].startswith("NV") for axis in ("pp", "dp") for a, b in layout.groups(axis))


def test_pipeline_stages_need_only_their_neighbours_linked() -> None:
    # a chain 0-1-2-3: no full mesh of four, but a path
    chain = {frozenset({i, i + 1}): "NV4" for i in range(3)}
    layout = place(with_matrix(parse_cluster("h100:1x4"), chain, "SYS"), {"pp": 4})

    assert layout.groups("pp") == [[0, 1, 2, 3]]
    assert proof(layout, "pp").worst_link == "nvlink"


# nodes: excluded, required, spare, slow


def test_excluded_nodes_are_not_used_and_said() -> None:
    layout = place("h100:4x8", {"dp": 3, "tp": 8}, exclude=("node-1",))

    assert {slot.node for slot in layout.slots} == {"node-0", "node-2", "node-3"}
    assert "not used: 1 h100 node: excluded by name" in layout.explain


def test_required_nodes_are_used_first() -> None:
    layout = place("h100:8x8", {"dp": 2, "tp": 8}, require=("node-6", "node-3"))

    assert [slot.node for slot in layout.slots][::8] == ["node-3", "node-6"]
    assert "required and used: node-6, node-3" in layout.explain


def test_a_required_node_brings_its_fabric_block() -> None:
    topology = with_tiers(parse_cluster("h100:4x8"), "a", "a", "b", "b")
    layout = place(topology, {"dp": 2, "tp": 8}, require=("node-3",))

    assert [slot.node for slot in layout.slots][::8] == ["node-2", "node-3"]


def test_required_nodes_may_lie_anywhere_in_the_fabric() -> None:
    topology = with_tiers(parse_cluster("h100:8x8"), *"aaaabbbb")
    scattered = place(topology, {"dp": 4, "tp": 8}, require=("node-1", "node-3", "node-5"))
    exactly = place(topology, {"dp": 2, "tp": 8}, require=("node-1", "node-5"))

    assert [s.node for s in scattered.slots][::8] == ["node-0", "node-1", "node-3", "node-5"]
    assert [s.node for s in exactly.slots][::8] == ["node-1", "node-5"]


def test_a_required_node_decides_the_product() -> None:
    layout = place("h100:2x8+l40s:2x8", {"dp": 8}, require=("node-3",))

    assert {slot.node for slot in layout.slots} == {"node-3"}


def test_more_required_nodes_than_the_job_fills_are_refused() -> None:
    with pytest.raises(CannotPlaceError) as error:
        place("h100:4x8", {"tp": 8}, require=("node-0", "node-1"))

    assert error.value.message == "tp(8) = 8: no placement uses all 2 required nodes"
    assert error.value.hint == "require fewer nodes"


def test_spares_are_kept_free_and_named() -> None:
    layout = place("h100:4x8", {"dp": 3, "tp": 8}, spares=1)

    assert {slot.node for slot in layout.slots} == {"node-0", "node-1", "node-2"}
    assert "kept free as spares: node-3" in layout.explain


def test_a_spare_can_stand_in_for_any_node() -> None:
    # the 4-GPU node could not replace an 8-GPU one
    layout = place("h100:3x8+h100:1x4", {"dp": 20}, spares=1)

    assert {slot.node for slot in layout.slots} == {"node-0", "node-1", "node-3"}
    assert "kept free as spares: node-2" in layout.explain


def test_spares_that_leave_too_little_are_refused_with_what_would_do() -> None:
    with pytest.raises(CannotPlaceError) as error:
        place("h100:4x8", {"dp": 3, "tp": 8}, spares=2)

    assert error.value.message == (
        "dp(3) x tp(8) = 24, cluster has 32 GPUs, of which this job can use 16"
    )
    assert error.value.hint == ("the largest that fits: dp(2) x tp(8) = 16; or keep 1 spare node")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exclude": ("node-9",)}, "exclude names node `node-9`, which `h100:2x8` does not have"),
        ({"require": ("nod-1",)}, "require names node `nod-1`"),
        (
            {"exclude": ("node-1",), "require": ("node-1",)},
            "`node-1` is both excluded and required",
        ),
        ({"spares": -1}, "spares = -1"),
    ],
)
def test_nodes_that_make_no_sense_are_usage_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        place("h100:2x8", {"dp": 2}, **options)


def test_nodes_with_slow_nics_are_left_out_when_the_others_suffice() -> None:
    topology = parse_cluster("h100:3x8")
    hardware = topology.nodes[0].hardware
    slow = replace(hardware, nics=tuple(replace(nic, speed_gbit_s=100.0) for nic in hardware.nics))
    nodes = (replace(topology.nodes[0], hardware=slow), *topology.nodes[1:])
    topology = replace(topology, nodes=nodes)

    two = place(topology, {"dp": 2, "tp": 8})
    three = place(topology, {"dp": 3, "tp": 8})

    assert {slot.node for slot in two.slots} == {"node-1", "node-2"}
    assert "not used: 1 node with slower NICs: node-0" in two.explain
    assert proof(three, "dp").bandwidth == 12.5


# fabric blocks


def test_whole_blocks_are_filled_before_the_next() -> None:
    topology = with_tiers(parse_cluster("h100:6x8"), *"ababab")
    layout = place(topology, {"dp": 4, "tp": 8})

    used = [slot.node for slot in layout.slots][::8]
    # block a is nodes 0, 2, 4 and goes whole, then one node of block b
    assert used == ["node-0", "node-1", "node-2", "node-4"]


def test_pipeline_neighbours_share_a_block() -> None:
    topology = with_tiers(parse_cluster("h100:8x8"), *"abcdabcd")
    layout = place(topology, {"pp": 2, "dp": 4, "tp": 8}, traffic={"pp": 1e9, "dp": 1.0})

    nodes = {node.name: node.tiers[0] for node in topology.nodes}
    for group in layout.groups("pp"):
        assert len({nodes[layout.slots[rank].node] for rank in group}) == 1
    assert "inside one block" in proof(layout, "pp").reason


def test_a_node_in_no_known_block_is_near_nobody() -> None:
    topology = with_tiers(parse_cluster("h100:4x8"), "?", "?", "b", "b")
    layout = place(topology, {"dp": 2, "tp": 8})

    assert [slot.node for slot in layout.slots][::8] == ["node-2", "node-3"]


def test_rails_are_named_only_where_every_node_brings_the_same() -> None:
    topology = parse_cluster("h100:2x4")
    hardware = topology.nodes[0].hardware
    broken = replace(
        hardware, devices=(replace(hardware.devices[0], faults=("gone",)), *hardware.devices[1:])
    )
    uneven = replace(
        topology, nodes=(replace(topology.nodes[0], hardware=broken), topology.nodes[1])
    )

    assert "along one rail" in proof(place(topology, {"dp": 2, "tp": 4}), "dp").reason
    assert "along one rail" not in proof(place(uneven, {"dp": 2, "tp": 2}), "dp").reason


# refusals


def test_the_largest_that_fits_keeps_experts_whole() -> None:
    with pytest.raises(CannotPlaceError) as error:
        place("h100:3x8", {"fsdp": 32}, ep=16)

    assert error.value.hint == "the largest that fits: fsdp(16) = 16; or add 1 node of 8 h100"
