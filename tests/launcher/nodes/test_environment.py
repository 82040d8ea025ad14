"""Torchrun's variables from a layout, uneven nodes included."""

from parctl.launcher.nodes.environment import rank_environments, ranks_by_node, ranks_in_words
from parctl.topology.layout import Layout, Slot

# node b has one rank, node a has two, on GPUs in no order
LAYOUT = Layout(
    axes={"pp": 3},
    expert_axes=None,
    ranks=(2, 0, 1),
    slots=(
        Slot(rank=0, node="a", node_rank=0, local_rank=0, gpu=5),
        Slot(rank=1, node="a", node_rank=0, local_rank=1, gpu=3),
        Slot(rank=2, node="b", node_rank=1, local_rank=0, gpu=0),
    ),
    proofs=(),
    explain=(),
)


def test_every_rank_counts_as_torchrun_does() -> None:
    given = rank_environments(LAYOUT, run_id="r-1", retries=2, kind="gpu")
    names = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "CUDA_VISIBLE_DEVICES")

    assert [tuple(given[rank][name] for name in names) for rank in (0, 1, 2)] == [
        ("0", "0", "2", "0", "5,3"),
        ("1", "1", "2", "0", "5,3"),
        ("2", "0", "1", "1", "0"),
    ]
    assert {name: given[2][name] for name in ("WORLD_SIZE", "GROUP_WORLD_SIZE")} == {
        "WORLD_SIZE": "3",
        "GROUP_WORLD_SIZE": "2",
    }
    assert given[0]["PARCTL_RUN_ID"] == given[0]["TORCHELASTIC_RUN_ID"] == "r-1"
    assert given[0]["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_a_plan_for_cpus_hides_gpus_and_an_unknown_one_says_nothing() -> None:
    cpu = rank_environments(LAYOUT, run_id="r-1", retries=0, kind="cpu")
    unknown = rank_environments(LAYOUT, run_id="r-1", retries=0, kind=None)

    assert cpu[0]["CUDA_VISIBLE_DEVICES"] == ""
    assert "CUDA_VISIBLE_DEVICES" not in unknown[0]


def test_ranks_are_shown_by_mesh_coordinate_and_grouped_by_node() -> None:
    assert [entry["coordinates"] for entry in ranks_in_words(LAYOUT)] == [
        {"pp": 1},
        {"pp": 2},
        {"pp": 0},
    ]
    grouped = ranks_by_node(LAYOUT)
    assert {node: [slot.rank for slot in slots] for node, slots in grouped.items()} == {
        "a": [0, 1],
        "b": [2],
    }
