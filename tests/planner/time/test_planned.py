"""A plan's schedule with the seconds of its own stages waits as long as the plan says."""

import pytest

from parctl.planner.chart.chart import chart_of_spec, with_seconds
from parctl.planner.chart.svg import chart_svg
from parctl.planner.chart.text import heading, summary
from parctl.planner.make import make_plan
from parctl.planner.time.planned import action_times, planned_job
from parctl.recipes.loader import load_recipe
from parctl.topology.synthetic import parse_cluster

CLUSTER = parse_cluster("h100:16x8")


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe", "interleaved-1f1b:2", "zero-bubble", "zbv"])
def test_the_chart_waits_as_long_as_the_plan_says(schedule: str) -> None:
    recipe = load_recipe(f"llama-70b: TP8+SP+PP4@{schedule}+FSDP4", ["train.global_batch=64"])
    plan = make_plan(recipe, CLUSTER)
    assert plan.time["micro_batches_per_step"] == 16
    even = chart_of_spec(recipe.parallelism, pp=4, num_micro_batches=16)
    chart = with_seconds(even, *action_times(plan, CLUSTER))

    work = [sum(end - start for _, start, end in row) for row in chart.timeline.rows]
    waited = (chart.timeline.duration - max(work)) / 1e3
    assert waited == pytest.approx(plan.time["step_parts_s"]["bubble"], rel=1e-9)


def test_uneven_stages_wait_longer_than_the_closed_form_says() -> None:
    recipe = load_recipe("llama-70b: TP8+SP+PP4+FSDP4", ["train.global_batch=64"])
    plan = make_plan(recipe, CLUSTER)
    even = chart_of_spec(recipe.parallelism, pp=4, num_micro_batches=16)
    chart = with_seconds(even, *action_times(plan, CLUSTER))

    assert chart.idle_share > even.idle_share
    assert heading(chart).endswith(" ms")
    assert "(1 unit)" not in summary(chart)[0]
    assert "Closed form for even stages: (p - 1) / (m + p - 1) = 3/19" in summary(chart)[2]
    assert chart.to_json()["units"] == "ms"
    assert " ms</title>" in chart_svg(chart)


def test_a_job_on_cpus_has_its_shapes_all_the_same() -> None:
    cluster = parse_cluster("cpu:1x4")
    plan = make_plan(load_recipe("tiny-llama: TP2+FSDP2"), cluster)
    job = planned_job(plan, cluster)

    assert (job.degrees.tp, job.degrees.fsdp) == (2, 2)
    assert plan.recipe.train is not None
    assert job.tokens == plan.recipe.train.micro_batch * plan.recipe.train.seq_len
