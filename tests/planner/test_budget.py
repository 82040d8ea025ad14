"""What a number of tokens costs."""

import pytest

from parctl.errors import UsageError
from parctl.planner.budget import budget_of, count_text, read_tokens
from parctl.planner.make import make_plan
from parctl.recipes.loader import load_recipe
from parctl.topology.synthetic import parse_cluster


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("15T", 15 * 10**12), ("1.5b", 1_500_000_000), ("2e9", 2 * 10**9), ("8192", 8192)],
)
def test_tokens_are_read_with_their_scale(text: str, tokens: int) -> None:
    assert read_tokens(text) == tokens


@pytest.mark.parametrize("text", ["", "many", "-3B", "0", "1..2T", "inf"])
def test_what_is_no_number_of_tokens_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--tokens"):
        read_tokens(text)


def test_tokens_are_whole_steps_and_hours_are_of_all_devices() -> None:
    recipe = load_recipe("llama-70b", ["launch.price_per_gpu_hour=2"])
    plan = make_plan(recipe, parse_cluster("h100:16x8"))
    budget = budget_of(plan, 10**9)
    assert budget is not None
    # 512 sequences of 8192 tokens a step: 238.4 steps
    assert (budget.steps, budget.tokens) == (239, 239 * 4_194_304)
    assert budget.seconds == 239 * plan.time["step_time_s"]
    assert budget.device_hours == pytest.approx(budget.seconds * 128 / 3600)
    assert budget.cost == pytest.approx(2 * budget.device_hours)
    own = budget_of(plan)
    assert own is not None and own.steps == 1000


def test_without_a_prediction_there_is_no_budget() -> None:
    plan = make_plan(load_recipe("tiny-llama"), parse_cluster("cpu:1x4"))
    assert budget_of(plan, 10**9) is None


def test_counts_are_shortened() -> None:
    assert [count_text(n) for n in (12, 8192, 4_194_304_000)] == ["12", "8.19K", "4.19B"]
