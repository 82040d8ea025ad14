"""A lost node: what goes with it, what is repeated, where the ranks go."""

import pytest

from parctl.errors import UsageError
from parctl.planner.make import make_plan
from parctl.planner.node_loss import NodeLoss, broken_groups, lose_node
from parctl.recipes.loader import load_recipe
from parctl.topology.synthetic import parse_cluster


def lost(
    line: str, cluster: str, *overrides: str, node: str = "node-1", step: int = 77
) -> NodeLoss:
    recipe = load_recipe(line, list(overrides))
    topology = parse_cluster(cluster)
    return lose_node(recipe, make_plan(recipe, topology), topology, node, step)


def test_steps_since_the_last_save_are_lost() -> None:
    every = ("checkpoint.every=20", "train.steps=1000")
    line = "llama-70b: TP8+SP+FSDP4"

    assert (
        lost(line, "h100:4x8", *every).checkpoint_step,
        lost(line, "h100:4x8", *every).lost_steps,
    ) == (60, 16)
    # step 80 is under way, so its save is not there; in step 81 it is
    at_80, at_81 = (lost(line, "h100:4x8", *every, step=step) for step in (80, 81))
    assert (at_80.checkpoint_step, at_80.lost_steps) == (60, 19)
    assert (at_81.checkpoint_step, at_81.lost_steps) == (80, 0)
    never = lost(line, "h100:4x8", "checkpoint.every=0", "train.steps=1000")
    assert (never.checkpoint_step, never.lost_steps) == (0, 76)


def test_groups_that_lost_a_rank_are_counted_by_axis() -> None:
    loss = lost("llama-70b: TP8+SP+FSDP4", "h100:4x8")

    assert loss.ranks == tuple(range(8, 16))
    assert loss.broken == {"fsdp": 8, "tp": 1}


def test_broken_groups_are_those_of_the_layout() -> None:
    plan = make_plan(load_recipe("llama-70b: TP4+SP+PP2+FSDP4"), parse_cluster("h100:4x8"))
    ranks = tuple(range(8, 16))
    wanted = {
        axis: sum(bool(set(group) & set(ranks)) for group in plan.layout.groups(axis))
        for axis in plan.layout.axes
    }
    assert broken_groups(plan, ranks) == wanted


def test_groups_of_experts_break_too() -> None:
    plan = make_plan(load_recipe("mixtral-8x7b: FSDP8+TP4+EP8"), parse_cluster("h100:4x8"))

    # two tp groups fill a node; each of their four places is in an ep group of its own
    assert broken_groups(plan, tuple(range(8, 16))) == {"fsdp": 4, "tp": 2, "ep": 4}


def test_a_spare_node_takes_over_with_the_same_degrees() -> None:
    loss = lost("llama-70b: TP8+SP+FSDP4", "h100:5x8", "placement.spares=1")

    assert loss.outcome == "same degrees" and loss.rebound is not None
    assert loss.rebound.difference.missing_nodes == ("node-1",)
    assert loss.rebound.difference.new_nodes == ("node-4",)
    assert not any(slot.node == "node-1" for slot in loss.rebound.layout.slots)


def test_without_a_spare_open_degrees_shrink_to_what_divides_the_batch() -> None:
    loss = lost("llama-70b: TP8+SP+FSDP", "h100:5x8", "train.global_batch=20")

    # 4 nodes are left, and 20 sequences divide by fsdp 4
    assert loss.outcome == "fewer ranks" and loss.replanned is not None
    assert dict(loss.replanned.layout.axes) == {"fsdp": 4, "tp": 8}
    assert "1 of 5 planned nodes are not there (node-1)" in loss.refusals[0]
    smaller = lost("llama-70b: TP8+SP+FSDP", "h100:8x8", "train.global_batch=64")
    assert smaller.replanned is not None
    assert smaller.replanned.layout.axes["fsdp"] == 4  # 7, 6 and 5 do not divide 64
    assert "expected a multiple of fsdp(7)" in smaller.refusals[1]


def test_fixed_degrees_without_a_spare_wait() -> None:
    loss = lost("llama-70b: TP8+SP+FSDP4", "h100:4x8")

    assert loss.outcome == "wait"
    assert loss.rebound is None and loss.replanned is None and loss.refusals


@pytest.mark.parametrize(
    ("node", "step", "message"),
    [("node-9", 5, "uses no node `node-9`"), ("node-1", 0, "steps 1 to"), ("node-1", 10**9, "to")],
)
def test_a_node_or_step_that_is_not_there_is_refused(node: str, step: int, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        lost("llama-70b: TP8+SP+FSDP4", "h100:5x8", node=node, step=step)
    assert message in refused.value.message
