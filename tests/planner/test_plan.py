"""The plan as a value: its hash, its JSON and what a reader refuses."""

import json
from dataclasses import replace

import pytest

from parctl.errors import UsageError
from parctl.planner.make import make_plan
from parctl.planner.plan import Plan, plan_from_json
from parctl.recipes.loader import load_recipe
from parctl.topology.synthetic import parse_cluster


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(load_recipe("tiny-llama: TP2+SP+FSDP2"), parse_cluster("h100:1x4"))


def test_a_plan_survives_json(plan: Plan) -> None:
    assert plan_from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_estimates_do_not_change_the_hash(plan: Plan) -> None:
    assert replace(plan, memory={}, time={"step_s": 1.0}).hash == plan.hash


def test_where_the_recipe_was_read_does_not_change_the_hash(plan: Plan) -> None:
    elsewhere = replace(plan.recipe, source="here.yaml", notes=("read as something",))
    assert replace(plan, recipe=elsewhere).hash == plan.hash


def test_what_decides_the_run_changes_the_hash(plan: Plan) -> None:
    assert replace(plan, recipe=replace(plan.recipe, name="other")).hash != plan.hash
    assert replace(plan, backend={"kind": "ray"}).hash != plan.hash
    assert replace(plan, stages=((0, 1),)).hash != plan.hash


def test_a_changed_plan_is_refused(plan: Plan) -> None:
    document = plan.to_json()
    document["layout"]["ranks"] = [1, 0, 2, 3]
    with pytest.raises(UsageError, match="its content hashes to"):
        plan_from_json(document)


def test_another_schema_is_refused(plan: Plan) -> None:
    with pytest.raises(UsageError, match="plan has schema 2, this parctl reads schema 1"):
        plan_from_json({**plan.to_json(), "schema": 2})


def test_an_incomplete_plan_is_refused(plan: Plan) -> None:
    document = plan.to_json()
    del document["stages"]
    with pytest.raises(UsageError, match="plan is incomplete: KeyError: 'stages'"):
        plan_from_json(document)
