"""`task: script`: the program keeps its own rank order, nodes and devices are permuted."""

from dataclasses import replace

import pytest

from parctl.errors import CannotPlaceError
from parctl.topology.placement import LayoutRequest, lay_out
from parctl.topology.synthetic import parse_cluster


def test_ranks_keep_program_order() -> None:
    layout = lay_out(LayoutRequest(axes={"dp": 2, "tp": 8}, linear=True), parse_cluster("h100:2x8"))

    assert layout.ranks == tuple(range(16))
    assert [slot.local_rank for slot in layout.slots] == [*range(8), *range(8)]


def test_local_devices_are_permuted_to_make_the_programs_groups_good_ones() -> None:
    # the program puts ranks 0,1 / 2,3 / ... into tp groups; NV2 pairs are 0-3, 1-2, 4-7, 5-6
    layout = lay_out(LayoutRequest(axes={"dp": 4, "tp": 2}, linear=True), parse_cluster("v100:1x8"))

    assert layout.ranks == tuple(range(8))
    assert [slot.gpu for slot in layout.slots] == [0, 3, 1, 2, 4, 7, 5, 6]
    assert [slot.local_rank for slot in layout.slots] == list(range(8))


def test_nodes_are_permuted_to_follow_the_fabric() -> None:
    topology = parse_cluster("h100:4x1")
    nodes = [replace(n, tiers=(f"b{i % 2}",)) for i, n in enumerate(topology.nodes)]
    topology = replace(topology, tiers=("block",), nodes=tuple(nodes))

    layout = lay_out(LayoutRequest(axes={"pp": 2, "dp": 2}, linear=True), topology)

    assert layout.ranks == (0, 1, 2, 3)
    assert [slot.node for slot in layout.slots] == ["node-0", "node-2", "node-1", "node-3"]
    assert [slot.node_rank for slot in layout.slots] == [0, 1, 2, 3]


def test_tp_need_not_be_last_inside_one_node() -> None:
    layout = lay_out(
        LayoutRequest(axes={"dp": 2, "tp": 2, "fsdp": 4}, linear=True), parse_cluster("h100:2x8")
    )

    assert layout.ranks == tuple(range(16))
    assert layout.groups("tp")[0] == [0, 4]


def test_an_order_that_breaks_the_hard_rule_is_refused() -> None:
    # tp(2) outermost: rank 0 and rank 8 would have to share a node of 8
    with pytest.raises(CannotPlaceError) as error:
        lay_out(LayoutRequest(axes={"tp": 2, "fsdp": 8}, linear=True), parse_cluster("h100:2x8"))

    assert "keep their own order" in error.value.message
    assert "name tp last" in (error.value.hint or "")


def test_a_script_that_no_order_could_place_says_so_plainly() -> None:
    with pytest.raises(CannotPlaceError, match=r"needs 5 groups of tp\(3\).* hold 4"):
        lay_out(LayoutRequest(axes={"dp": 5, "tp": 3}, linear=True), parse_cluster("h100:2x8"))


def test_a_script_without_axes_of_its_own_is_one_data_axis() -> None:
    layout = lay_out(LayoutRequest(axes={"dp": 12}, linear=True), parse_cluster("h100:2x8"))

    assert [slot.node_rank for slot in layout.slots] == [0] * 8 + [1] * 4
