"""The same job on fewer nodes: replicas go first, then shards, and never below the limit."""

from dataclasses import replace

from parctl.launcher.nodes.fewer import plan_for_fewer
from parctl.planner.make import make_plan
from parctl.planner.plan import Plan
from parctl.recipes.loader import load_recipe
from parctl.topology.discover import discover
from parctl.topology.model import Topology


def planned(parallelism: str, cluster: str, *changes: str) -> tuple[Plan, Topology]:
    topology = discover(cluster)
    recipe = load_recipe("tiny-llama", [f"parallelism={parallelism}", *changes])
    return make_plan(recipe, topology, backend="ray"), topology


def left(topology: Topology, num_nodes: int) -> Topology:
    return replace(topology, nodes=topology.nodes[:num_nodes])


def test_shards_become_fewer_and_nothing_else_changes() -> None:
    plan, topology = planned("TP2+SP+FSDP4", "h100:4x2")
    found = plan_for_fewer(plan, left(topology, 3), min_nodes=2)

    assert found is not None
    smaller, sentences = found
    # 32 sequences in micro-batches of 8 cannot be split over three
    assert dict(smaller.layout.axes) == {"fsdp": 2, "tp": 2}
    assert sentences == ("going on with fsdp 2 in place of 4: 2 nodes are there, 4 were planned",)
    assert smaller.recipe.train == plan.recipe.train


def test_replicas_go_before_shards() -> None:
    plan, topology = planned("DP2+TP2+FSDP2", "h100:4x2")
    found = plan_for_fewer(plan, left(topology, 2), min_nodes=1)

    assert found is not None
    axes = found[0].layout.axes
    assert (axes.get("dp", 1), axes["fsdp"], axes["tp"]) == (1, 2, 2)


def test_below_the_limit_nothing_is_proposed() -> None:
    plan, topology = planned("TP2+FSDP2", "h100:2x2")

    assert plan_for_fewer(plan, left(topology, 1), min_nodes=2) is None
    assert plan_for_fewer(plan, left(topology, 1), min_nodes=None) is None
    assert plan_for_fewer(plan, left(topology, 1), min_nodes=1) is not None


def test_nodes_that_the_recipe_names_need_not_be_among_those_that_are_left() -> None:
    plan, topology = planned("TP2+FSDP2", "h100:4x2", "placement.exclude=[node-0,node-1]")
    there = replace(topology, nodes=topology.nodes[2:3])

    found = plan_for_fewer(plan, there, min_nodes=1)
    assert found is not None
    assert found[0].topology["nodes"] == ["node-2"]
