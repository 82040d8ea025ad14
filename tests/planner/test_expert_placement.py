"""Which expert lives where, and that the plan says it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.runtime.moe_models import MODELS
from tests.runtime.plans import parallelism

from parctl.errors import ParctlError
from parctl.planner.expert_placement import balanced, busiest, expert_order, explain_experts, spans
from parctl.planner.make import make_plan
from parctl.planner.plan import plan_from_json
from parctl.recipes.loader import load_recipe
from parctl.recipes.spec import ParallelismSpec
from parctl.topology.synthetic import parse_cluster


def spec(placement: str, load: tuple[tuple[float, ...], ...] | None = None) -> ParallelismSpec:
    return replace(
        parallelism({"dp": 2}),
        ep=2,
        expert_placement=placement,  # type: ignore[arg-type]
        expert_load=load,
    )


def test_orders_of_four_experts_on_two_ranks() -> None:
    assert expert_order(4, spec("block"), 0) == (0, 1, 2, 3)
    assert expert_order(4, spec("round-robin"), 0) == (0, 2, 1, 3)
    # 9 alone would be best, but every rank holds two: 9 + 1 and 4 + 4
    load = ((), (9.0, 4.0, 4.0, 1.0))
    assert expert_order(4, spec("load-balanced", load), 1) == (0, 3, 1, 2)
    assert expert_order(4, spec("load-balanced", load), 0) == (0, 1, 2, 3)  # not measured


def test_dealing_out_by_load_evens_ranks_out() -> None:
    load = [100, 90, 10, 10, 10, 10, 10, 10]
    ranks = balanced(load, 4)
    assert sorted(expert for rank in ranks for expert in rank) == list(range(8))
    assert all(len(rank) == 2 for rank in ranks)
    order = [expert for rank in ranks for expert in rank]
    assert busiest(range(8), load, 4) == pytest.approx(190 / (250 / 4))
    assert busiest(order, load, 4) == pytest.approx(110 / (250 / 4))


def test_spans_shorten_runs() -> None:
    assert spans([0, 1, 2, 3]) == "0-3"
    assert spans([7, 0, 2]) == "0 2 7"
    assert spans(range(0, 20, 2)) == "0 2 4 ... 18"


def test_the_plan_says_which_ranks_hold_which_experts() -> None:
    recipe = load_recipe("tiny-moe")
    plan = make_plan(recipe, parse_cluster("cpu:1x4"))
    assert "experts (block): 0-1 on ranks 0-1; 2-3 on ranks 2-3" in plan.layout.explain
    assert plan_from_json(plan.to_json()) == plan


def test_the_plan_says_what_placement_by_load_gains() -> None:
    model, load = MODELS["mixtral"], ((9.0, 7.0, 1.0, 3.0), (1.0, 1.0, 1.0, 1.0))
    (sentence,) = explain_experts(model, spec("load-balanced", load), [[0], [1]])
    # 9 + 1 and 7 + 3 against 9 + 7 and 1 + 3: 1.0 and 1.6, each averaged with 1.0
    assert sentence.endswith("the busiest ep rank has 1.00 of the mean, in blocks 1.30")


RECIPE = """
version: 1
name: mine
task: train
model: tiny-moe
parallelism: {dp: 2, ep: 2, expert_placement: load-balanced, expert_load_file: load.json}
data: {train: corpus://guide, tokenizer: byte}
"""


def test_a_measured_load_is_read_beside_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE)
    (tmp_path / "load.json").write_text(json.dumps([[4, 3, 2, 1]] * 4))
    assert load_recipe(str(path)).parallelism.expert_load == ((4.0, 3.0, 2.0, 1.0),) * 4


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot read"),
        ("[[1, 2", "it is not JSON"),
        ('[["many"]]', "no list of lists of numbers"),
        ("[[1, 2, 3, -4]]", "no list of lists of numbers"),
        ("[[1, 2, 3, 4]]", "the layers in the file have"),
    ],
)
def test_a_wrong_load_file_is_refused(content: str | None, says: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE)
    if content is not None:
        (tmp_path / "load.json").write_text(content)
    with pytest.raises(ParctlError, match=says):
        load_recipe(str(path))


def test_placement_by_load_needs_a_file_and_a_file_placement_by_load(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE.replace(", expert_load_file: load.json", ""))
    with pytest.raises(ParctlError, match="no `expert_load_file`"):
        load_recipe(str(path))
    path.write_text(RECIPE.replace("load-balanced", "block"))
    with pytest.raises(ParctlError, match="nothing but load-balanced placement reads"):
        load_recipe(str(path))
