"""The time section of plans."""

from dataclasses import replace

import pytest

from parctl.planner.make import make_plan
from parctl.planner.plan import Plan
from parctl.recipes.loader import load_recipe
from parctl.topology.synthetic import parse_cluster


def plan(line: str, cluster: str, *overrides: str) -> Plan:
    return make_plan(load_recipe(line, overrides), parse_cluster(cluster))


def test_a_plan_says_how_long_a_step_takes_and_how_sure_that_is() -> None:
    time = plan("llama-70b", "h100:16x8").time
    assert sum(time["step_parts_s"].values()) == pytest.approx(time["step_time_s"])
    rate = time["tokens_per_step"] / time["step_time_s"] / 128
    assert time["tokens_per_s_per_gpu"] == pytest.approx(rate)
    assert time["mfu"] == pytest.approx(rate * time["model_flops_per_token"] / 989e12)
    assert time["step_time_basis"].startswith("estimate; on published runs")
    assert time["peak_flops_per_device"] == 989e12


def test_mfu_of_float8_is_of_the_float8_peak() -> None:
    time = plan("llama-3-8b: FSDP", "h100:1x8", "train.precision=fp8").time
    flops = time["tokens_per_s_per_gpu"] * time["model_flops_per_token"]
    assert time["mfu"] == pytest.approx(flops / 1979e12)


@pytest.mark.parametrize(
    ("line", "cluster", "override", "reason"),
    [
        ("tiny-llama", "cpu:1x4", "train.seed=1", "the devices are CPUs"),
        ("llama-3-8b: FSDP", "h100:1x8", "train.precision=fp32", "fp32 was not held against"),
        ("llama-3-8b: FSDP", "h100:1x8", "train.offload_optimizer=true", "offloading"),
    ],
)
def test_a_plan_says_why_it_predicts_no_time(
    line: str, cluster: str, override: str, reason: str
) -> None:
    time = plan(line, cluster, override).time
    assert time["step_time_s"] is None
    assert reason in time["step_time_basis"]


def test_the_estimate_is_no_part_of_the_plans_hash() -> None:
    made = plan("llama-70b", "h100:16x8")
    assert replace(made, time={**made.time, "step_time_s": 1.0}).hash == made.hash


def test_exchanges_between_nodes_cost_more_of_a_step_than_inside_one() -> None:
    made = plan("llama-3-8b: FSDP", "h100:16x8")
    parts = made.time["step_parts_s"]
    inside = plan("llama-3-8b: FSDP", "h100:1x8").time["step_parts_s"]
    assert parts["data"] / parts["compute"] > inside["data"] / inside["compute"]


def test_fewer_micro_batches_make_a_larger_bubble() -> None:
    def bubble(batch: int) -> float:
        made = plan("llama-70b: TP8+PP4+DP", "h100:16x8", f"train.global_batch={batch}")
        return float(made.time["step_parts_s"]["bubble"] / made.time["step_time_s"])

    assert bubble(16) > bubble(64) > bubble(512)


def test_the_terminal_shows_the_step_and_its_parts(capsys: pytest.CaptureFixture[str]) -> None:
    from parctl.cli.main import run

    assert run(["plan", "llama-70b", "--cluster", "h100:16x8"]) == 0
    out = capsys.readouterr().out
    assert "TIME: " in out and "of the bf16 peak (estimate; on published runs" in out
    assert "A step is spent on:\n  compute " in out
    assert run(["plan", "tiny-llama", "--cluster", "cpu:1x4"]) == 0
    assert "TIME: not predicted: the devices are CPUs." in capsys.readouterr().out
