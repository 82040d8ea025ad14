"""`parallelism: auto` in whole plans."""

from parctl.planner.make import make_plan
from parctl.planner.plan import Plan
from parctl.recipes.loader import load_recipe
from parctl.topology.synthetic import parse_cluster


def plan(line: str, cluster: str, *overrides: str) -> Plan:
    return make_plan(load_recipe(line, overrides), parse_cluster(cluster))


def test_auto_takes_the_fastest_and_says_why_not_the_others() -> None:
    made = plan("gpt-2: auto", "h100:1x8", "train.micro_batch=8", "train.global_batch=512")
    assert dict(made.layout.axes) == {"dp": 8}
    first, *others = made.layout.explain
    assert first.startswith("auto: DP8, micro-batch 8, recompute selective: ")
    assert any(line.startswith("auto: not TP: DP4+TP2+SP") for line in others)


def test_auto_keeps_micro_batch_and_recompute_while_something_fits() -> None:
    overrides = ["train.micro_batch=2", "train.recompute=full"]
    made = plan("llama-3-8b: auto", "h100:2x8", *overrides)
    train = made.recipe.train
    assert train is not None and (train.micro_batch, train.recompute) == (2, "full")
    assert made.memory["fits"] is True


def test_auto_searches_them_too_where_nothing_fits() -> None:
    overrides = ["train.micro_batch=16", "train.recompute=none", "train.global_batch=256"]
    made = plan("llama-3-8b: auto", "a100-40g:2x4", *overrides)
    train = made.recipe.train
    assert train is not None and train.micro_batch < 16
    assert made.memory["fits"] is True
    assert made.layout.explain[0] == (
        "auto: with micro-batch 16 and recompute none nothing fits: both are searched, too"
    )


def test_virtual_stages_that_auto_chose_are_dealt_out() -> None:
    made = plan("llama-3-70b: auto", "h100:8x8", "train.global_batch=256")
    spec = made.recipe.parallelism
    assert spec.pp is not None and spec.pp > 1 and spec.virtual_stages > 1
    assert len(made.stages) == spec.pp * spec.virtual_stages


def test_a_plan_of_auto_is_the_plan_of_what_it_chose() -> None:
    made = plan("llama-3-8b: auto", "h100:2x8")
    form = made.layout.explain[0].removeprefix("auto: ").partition(",")[0]
    again = plan(f"llama-3-8b: {form}", "h100:2x8")
    assert again.layout.ranks == made.layout.ranks
    assert again.time["step_time_s"] == made.time["step_time_s"]
    assert again.memory == made.memory


def test_on_cpus_auto_is_the_rule() -> None:
    made = plan("tiny-llama: auto", "cpu:1x4")
    assert made.layout.explain[0].startswith("auto: DP: the first form that fits")
