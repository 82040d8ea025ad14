"""What the planner sees of a cluster."""

from dataclasses import replace

import pytest

from parctl.errors import CannotPlaceError
from parctl.planner.devices import explain_faults, survey
from parctl.planner.make import make_plan
from parctl.recipes.loader import load_recipe
from parctl.topology.model import Topology
from parctl.topology.synthetic import parse_cluster


def test_equal_nodes_are_counted() -> None:
    devices = survey(parse_cluster("h100:16x8"), strict_node=False)
    assert (devices.count, devices.kind, dict(devices.islands)) == (128, "gpu", {8: 16})
    assert devices.products == ("h100",)


def test_the_smallest_memory_counts() -> None:
    small = survey(parse_cluster("a100-40g:1x8"), strict_node=False).memory_bytes
    mixed = survey(parse_cluster("h100:2x8+a100-40g:1x8"), strict_node=False)
    assert mixed.memory_bytes == small
    assert mixed.products == ("h100", "a100-40g")


def test_a_rack_scale_domain_is_one_island_unless_the_node_is_strict() -> None:
    topology = parse_cluster("gb200:2x18x4")
    assert dict(survey(topology, strict_node=False).islands) == {72: 2}
    assert dict(survey(topology, strict_node=True).islands) == {4: 36}


def test_a_hybrid_mesh_has_two_islands() -> None:
    assert dict(survey(parse_cluster("v100:1x8"), strict_node=False).islands) == {4: 2}


def broken(topology: Topology, faults: dict[tuple[int, int], str]) -> Topology:
    """The same cluster with these faults of (node, device)."""
    nodes = []
    for number, node in enumerate(topology.nodes):
        devices = tuple(
            replace(device, faults=(faults[number, position],))
            if (number, position) in faults
            else device
            for position, device in enumerate(node.hardware.devices)
        )
        nodes.append(replace(node, hardware=replace(node.hardware, devices=devices)))
    return replace(topology, nodes=tuple(nodes))


def test_a_device_with_a_fault_is_not_counted() -> None:
    topology = broken(parse_cluster("h100:1x8"), {(0, 2): "fell off the bus"})
    devices = survey(topology, strict_node=False)
    assert (devices.count, dict(devices.islands)) == (7, {7: 1})
    assert devices.usable(4) == 4


def test_devices_that_are_not_counted_are_told_with_their_faults() -> None:
    whole = parse_cluster("h100:4x8")
    assert explain_faults(whole) is None

    silent = {(3, position): "node is not Ready" for position in range(8)}
    others = dict(zip([(0, 0), (0, 1), (1, 1)], ("lost", "ECC errors", "no NVLink"), strict=True))
    assert explain_faults(broken(whole, silent)) == "not counted for a fault: node is not Ready (8)"
    told = "not counted for a fault: node is not Ready (8), lost (1), ECC errors (1), others (1)"
    assert explain_faults(broken(whole, silent | others)) == told

    recipe = load_recipe("llama-2-7b: FSDP32", [])
    with pytest.raises(CannotPlaceError) as error:
        make_plan(recipe, broken(whole, silent))
    assert error.value.message == (
        "fsdp(32) = 32, cluster has 24 GPUs; not counted for a fault: node is not Ready (8)"
    )


def test_unknown_memory_of_one_device_is_unknown_for_all() -> None:
    assert survey(parse_cluster("cpu:1x4"), strict_node=False).memory_bytes is None


def test_whole_tensor_groups_are_what_counts() -> None:
    devices = survey(parse_cluster("h100:1x6+h100:2x8"), strict_node=False)
    assert (devices.usable(1), devices.usable(4), devices.usable(8)) == (22, 20, 16)
    assert devices.usable(16) == 16  # across islands: allowed only where the recipe says so


def test_devices_joined_by_pcie_only_hold_no_tensor_group_beside_those_that_can() -> None:
    topology = parse_cluster("h100:2x8+l40s:1x4")
    devices = survey(topology, strict_node=False)
    assert (devices.count, dict(devices.islands)) == (20, {8: 2, 1: 4})
    assert (devices.usable(1), devices.usable(2)) == (20, 16)
    allowed = survey(topology, strict_node=False, allow_pcie_tp=True)
    assert dict(allowed.islands) == {8: 2, 4: 1}
    # alone they are one set, so that the layout can say why they do not do
    assert dict(survey(parse_cluster("l40s:2x4"), strict_node=False).islands) == {4: 2}


def test_a_device_without_nvlink_is_no_part_of_its_domain() -> None:
    tray = parse_cluster("gb200:1x2x4")
    hardware = tray.nodes[0].hardware
    cut = tuple(
        tuple("SYS" if i != j and 2 in (i, j) else code for j, code in enumerate(row))
        for i, row in enumerate(hardware.matrix)
    )
    broken = replace(tray.nodes[0], hardware=replace(hardware, matrix=cut))
    devices = survey(replace(tray, nodes=(broken, tray.nodes[1])), strict_node=False)

    # 3 + 4 in the domain, and gpu 2 of the first node for itself
    assert (devices.count, dict(devices.islands)) == (8, {7: 1, 1: 1})
    assert devices.usable(4) == 4
