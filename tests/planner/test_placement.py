"""`placement` of a recipe: nodes that a plan must use, must not use, or keeps free."""

from pathlib import Path

import pytest

from parctl.errors import CannotPlaceError, RecipeError, UsageError
from parctl.planner.cluster import cluster_for
from parctl.planner.make import make_plan
from parctl.planner.plan import Plan, plan_from_json
from parctl.recipes.loader import load_recipe
from parctl.topology.synthetic import parse_cluster

CLUSTER = parse_cluster("h100:4x8")


def plan(form: str, *settings: str) -> Plan:
    recipe = load_recipe(f"llama-2-7b: {form}", [f"placement.{text}" for text in settings])
    return make_plan(recipe, CLUSTER)


def nodes(made: Plan) -> list[str]:
    return list(dict.fromkeys(slot.node for slot in made.layout.slots))


def test_an_excluded_node_is_neither_used_nor_counted() -> None:
    made = plan("FSDP", "exclude=node-[1-2]")

    assert nodes(made) == ["node-0", "node-3"]
    assert made.layout.axes == {"fsdp": 16}
    assert "not used: 2 h100 nodes: excluded by name" in made.layout.explain


def test_a_required_node_is_used_by_a_job_that_would_do_without() -> None:
    assert nodes(plan("FSDP8")) == ["node-0"]
    assert nodes(plan("FSDP8", "require=node-2")) == ["node-2"]


def test_spares_stay_free_when_the_rest_is_inferred() -> None:
    made = plan("FSDP", "spares=2")

    assert made.layout.axes == {"fsdp": 16}
    assert "kept free as spares: node-2, node-3" in made.layout.explain


def test_the_choice_of_nodes_is_part_of_the_plan_and_its_hash() -> None:
    plain, chosen = plan("FSDP8"), plan("FSDP8", "require=node-0")

    # the same nodes, but another promise
    assert nodes(plain) == nodes(chosen)
    assert plain.hash != chosen.hash
    assert plan_from_json(chosen.to_json()).hash == chosen.hash
    assert chosen.recipe.placement is not None
    assert chosen.recipe.placement.require == ("node-0",)


def test_saying_nothing_of_nodes_is_saying_nothing() -> None:
    assert plan("FSDP8", "exclude=[]", "spares=0").hash == plan("FSDP8").hash


def test_a_node_that_is_not_there_is_named_with_the_nearest_one() -> None:
    with pytest.raises(UsageError) as error:
        plan("FSDP8", "exclude=node-33")

    assert "`node-33`" in error.value.message
    assert error.value.hint == "did you mean `node-3`?"


def test_degrees_that_the_left_nodes_cannot_hold_are_refused_with_their_number() -> None:
    with pytest.raises(CannotPlaceError) as error:
        plan("FSDP32", "exclude=node-3")

    assert error.value.message == (
        "fsdp(32) = 32, cluster has 24 GPUs; `placement` leaves 3 of 4 nodes"
    )


def test_no_node_left_is_refused_with_the_sum() -> None:
    with pytest.raises(CannotPlaceError, match="4 in the cluster, 1 excluded, 3 to be kept free"):
        plan("FSDP8", "exclude=node-0", "spares=3")


def test_an_unknown_key_is_an_error_with_the_nearest_one() -> None:
    with pytest.raises(RecipeError) as error:
        plan("FSDP8", "exclud=node-0")

    assert "did you mean `exclude`?" in str(error.value)


def test_a_map_of_the_network_alone_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "topology.conf"
    path.write_text("SwitchName=leaf Nodes=n[1-4]\n")
    recipe = load_recipe("llama-2-7b: FSDP4", [])

    with pytest.raises(UsageError, match="names 4 nodes and no device") as error:
        cluster_for(recipe, str(path))

    assert error.value.hint is not None and "'n1=h100:1x8'" in error.value.hint
