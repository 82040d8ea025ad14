"""The nodes that came up are not always those of the plan."""

from dataclasses import replace
from random import Random

import pytest

from parctl.errors import CannotPlaceError, UsageError
from parctl.topology.layout import Layout, Slot
from parctl.topology.model import Topology
from parctl.topology.placement import LayoutRequest, lay_out
from parctl.topology.placement.late_binding import bind, rebind
from parctl.topology.synthetic import parse_cluster

REQUEST = LayoutRequest(axes={"pp": 2, "fsdp": 2, "tp": 8})


def slots_on(nodes: list[str], per_node: int = 8) -> list[Slot]:
    """Ranks as torchrun numbers them on nodes in the order in which they came up."""
    return [
        Slot(rank=i * per_node + j, node=node, node_rank=i, local_rank=j, gpu=j)
        for i, node in enumerate(nodes)
        for j in range(per_node)
    ]


def in_blocks(topology: Topology, size: int) -> Topology:
    nodes = [replace(n, tiers=(f"b{i // size}",)) for i, n in enumerate(topology.nodes)]
    return replace(topology, tiers=("block",), nodes=tuple(nodes))


def devices_of(layout: Layout) -> list[tuple[str, int]]:
    return [(layout.slots[r].node, layout.slots[r].gpu) for r in layout.ranks]


def test_the_planned_nodes_bind_to_the_plan() -> None:
    topology = parse_cluster("h100:8x8")
    planned = lay_out(REQUEST, topology)

    binding = bind(REQUEST, planned, planned.slots, topology)

    assert not binding.difference
    assert binding.layout.ranks == planned.ranks
    assert binding.layout.slots == planned.slots
    assert binding.difference.sentences == ()


def test_slots_in_any_order_bind_alike() -> None:
    topology = parse_cluster("h100:8x8")
    planned = lay_out(REQUEST, topology)
    slots = slots_on(["node-5", "node-1", "node-0", "node-7"])
    shuffled = Random(0).sample(slots, len(slots))

    assert bind(REQUEST, planned, slots, topology) == bind(REQUEST, planned, shuffled, topology)


def test_ranks_keep_their_numbers_and_the_mesh_follows_the_fabric() -> None:
    # blocks {0,1} and {2,3}; the nodes came up in an order that mixes them
    topology = in_blocks(parse_cluster("h100:4x8"), 2)
    planned = lay_out(REQUEST, topology)
    slots = slots_on(["node-2", "node-0", "node-3", "node-1"])

    binding = bind(REQUEST, planned, slots, topology)

    assert binding.layout.slots == tuple(slots)
    # fsdp pairs ranks of one block: node-0 has ranks 8-15, node-1 24-31
    assert binding.layout.groups("fsdp")[0] == [8, 24]
    assert not binding.difference  # every mesh coordinate is on its planned device
    assert devices_of(binding.layout) == devices_of(planned)


def test_a_spare_that_stands_in_is_a_difference() -> None:
    topology = parse_cluster("h100:5x8")
    planned = lay_out(replace(REQUEST, spares=1), topology)

    binding = bind(
        replace(REQUEST, spares=1),
        planned,
        slots_on(["node-0", "node-4", "node-2", "node-3"]),
        topology,
    )

    assert {slot.node for slot in planned.slots} == {"node-0", "node-1", "node-2", "node-3"}
    assert binding.difference.missing_nodes == ("node-1",)
    assert binding.difference.new_nodes == ("node-4",)
    assert binding.difference.moved == 24  # the mesh closes up: all but node-0 hold other ranks
    assert binding.difference.worse == ()
    assert binding.difference.sentences == (
        "planned, but not there: node-1",
        "there, but not planned: node-4",
        "24 ranks of the mesh are on another device than planned",
    )


def test_a_worse_fabric_is_said() -> None:
    topology = in_blocks(parse_cluster("gb200:2x4x4"), 4)
    request = LayoutRequest(axes={"fsdp": 2, "tp": 4})
    planned = lay_out(request, topology)
    slots = slots_on(["node-0", "node-4"], per_node=4)

    difference = bind(request, planned, slots, topology).difference

    assert [new.axis for _, new in difference.worse] == ["fsdp"]
    assert difference.sentences[0] == (
        "worse than planned: fsdp(2) over network at 50 GB/s, 2 nodes per group, "
        "planned over nvlink at 900 GB/s, 2 nodes per group"
    )


def test_a_device_that_came_up_without_nvlink_is_refused() -> None:
    topology = parse_cluster("h100:1x8")
    hardware = topology.nodes[0].hardware
    rows = tuple(
        tuple("SYS" if i != j and 2 in (i, j) else code for j, code in enumerate(row))
        for i, row in enumerate(hardware.matrix)
    )
    request = LayoutRequest(axes={"tp": 8})
    planned = lay_out(request, topology)
    now = replace(topology.nodes[0], hardware=replace(hardware, matrix=rows))

    with pytest.raises(CannotPlaceError, match=r"tp\(8\) > 7 GPUs"):
        bind(request, planned, planned.slots, replace(topology, nodes=(now,)))


def test_fewer_ranks_than_planned_are_refused_with_the_arithmetic() -> None:
    topology = parse_cluster("h100:4x8")
    planned = lay_out(REQUEST, topology)

    with pytest.raises(CannotPlaceError) as error:
        bind(REQUEST, planned, planned.slots[:24], topology)

    assert error.value.message == "pp(2) x fsdp(2) x tp(8) = 32, but 24 ranks came up"


def test_a_script_whose_nodes_came_up_in_another_order_is_refused() -> None:
    topology = in_blocks(parse_cluster("h100:4x8"), 2)
    request = LayoutRequest(axes={"pp": 2, "fsdp": 2, "tp": 8}, linear=True)
    planned = lay_out(request, topology)

    assert not bind(request, planned, planned.slots, topology).difference
    with pytest.raises(CannotPlaceError, match="keep their own order"):
        slots = slots_on(["node-2", "node-0", "node-3", "node-1"])
        bind(request, planned, slots, topology)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"node": "elsewhere"},
            "runs on elsewhere gpu 3, which the topology of the nodes does not have",
        ),
        ({"gpu": 0}, "two ranks run on node-0 gpu 0"),
        ({"rank": 4}, "must come up once each"),
    ],
)
def test_slots_that_contradict_themselves_are_usage_errors(
    change: dict[str, object], message: str
) -> None:
    topology = parse_cluster("h100:4x8")
    planned = lay_out(REQUEST, topology)
    slots = list(planned.slots)
    slots[3] = replace(slots[3], **change)  # type: ignore[arg-type]

    with pytest.raises(UsageError, match=message):
        bind(REQUEST, planned, slots, topology)


def there(names: list[str]) -> dict[str, None]:
    return dict.fromkeys(names)


def test_the_planned_nodes_are_kept_though_others_are_there_too() -> None:
    topology = parse_cluster("h100:8x8")
    request = replace(REQUEST, require=("node-5",))
    planned = lay_out(request, topology)
    every = [node.name for node in topology.nodes]

    binding = rebind(request, planned, there(every), topology)

    assert not binding.difference
    assert binding.layout.slots == planned.slots


def test_nodes_that_are_there_take_the_place_of_missing_ones() -> None:
    topology = parse_cluster("h100:6x8")
    planned = lay_out(REQUEST, topology)

    binding = rebind(REQUEST, planned, there(["node-5", "node-0", "node-4", "node-2"]), topology)

    assert list(dict.fromkeys(slot.node for slot in binding.layout.slots)) == [
        "node-0", "node-2", "node-4", "node-5",
    ]  # fmt: skip
    assert binding.difference.missing_nodes == ("node-1", "node-3")
    assert binding.difference.new_nodes == ("node-4", "node-5")


def test_a_script_is_numbered_anew_where_it_may_be() -> None:
    topology = in_blocks(parse_cluster("h100:6x8"), 2)
    request = LayoutRequest(axes={"pp": 2, "fsdp": 2, "tp": 8}, linear=True)
    planned = lay_out(request, topology)

    layout = rebind(request, planned, there(["node-5", "node-4", "node-1", "node-0"]), topology)

    assert layout.layout.ranks == tuple(range(32))


def test_only_the_given_devices_are_used() -> None:
    topology = parse_cluster("h100:2x8")
    request = LayoutRequest(axes={"dp": 2, "tp": 4})
    planned = lay_out(request, topology)

    layout = rebind(request, planned, {"node-0": [0, 1, 2, 3], "node-1": [4, 5, 6, 7]}, topology)

    assert [(slot.node, slot.gpu) for slot in layout.layout.slots] == [
        *(("node-0", gpu) for gpu in (0, 1, 2, 3)),
        *(("node-1", gpu) for gpu in (4, 5, 6, 7)),
    ]


def test_too_few_nodes_are_refused_in_one_sentence() -> None:
    topology = parse_cluster("h100:4x8")
    planned = lay_out(REQUEST, topology)

    with pytest.raises(CannotPlaceError) as error:
        rebind(REQUEST, planned, there(["node-0", "node-2"]), topology)

    assert error.value.message == (
        "2 of 4 planned nodes are not there (node-1, node-3): pp(2) x fsdp(2) x tp(8) = 32, "
        "cluster has 16 GPUs"
    )
    assert error.value.hint is not None and "the largest that fits" in error.value.hint


def test_no_node_at_all_is_refused_too() -> None:
    topology = parse_cluster("h100:4x8")
    planned = lay_out(REQUEST, topology)

    with pytest.raises(CannotPlaceError, match="4 of 4 planned nodes are not there"):
        rebind(REQUEST, planned, {}, topology)


@pytest.mark.parametrize("nodes", [{"elsewhere": None}, {"node-0": [8]}])
def test_a_node_or_device_that_nobody_described_is_a_usage_error(
    nodes: dict[str, list[int] | None],
) -> None:
    topology = parse_cluster("h100:4x8")
    planned = lay_out(REQUEST, topology)

    with pytest.raises(UsageError, match="which the topology of the nodes does not have"):
        rebind(REQUEST, planned, nodes, topology)
