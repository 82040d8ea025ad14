"""Whole steps: what they add up to, and what a change of the job does."""

from dataclasses import asdict, fields, replace

import pytest
from tests.planner.time.jobs import job

from parctl.planner.degrees import Degrees
from parctl.planner.time import exchanges
from parctl.planner.time.constants import FITTED, Constants
from parctl.planner.time.job import Fabric, Job
from parctl.planner.time.pipeline import even_waiting
from parctl.planner.time.step import step_time
from parctl.recipes.parameters import count_parameters
from parctl.recipes.presets import model_preset


def fabric(num_devices: int) -> Fabric:
    return Fabric(fast=450e9, slow=50e9, island=8, num_devices=num_devices)


def sharded(ranks: int, **changes: object) -> Job:
    degrees = Degrees(fsdp=ranks)
    return job(
        degrees=degrees,
        zero_stage=3,
        gathers_each=True,
        scatters_each=True,
        fabric=fabric(ranks),
        **changes,
    )


def test_the_parts_add_up_to_the_step() -> None:
    time = step_time(sharded(16))
    assert time.total == pytest.approx(sum(asdict(time).values()))
    assert all(part >= 0 for part in asdict(time).values())


def test_one_device_computes_and_updates_only() -> None:
    time = step_time(job())
    spent = {name for name, part in asdict(time).items() if part > 0}
    assert spent == {"compute", "optimizer"}


def test_an_8b_model_on_8_h100_is_as_fast_as_sources_report() -> None:
    """FSDP in bf16 at 8192 tokens: 7,000 to 10,000 tokens per second and GPU."""
    time = step_time(sharded(8, seq_len=8192, num_micro_batches=16))
    assert 7_000 < 16 * 8192 / time.total < 10_000


def test_micro_batches_take_their_time_one_by_one() -> None:
    one, four = step_time(sharded(8)), step_time(sharded(8, num_micro_batches=4))
    assert four.compute == pytest.approx(4 * one.compute)
    assert four.optimizer == one.optimizer


def test_overlapped_exchanges_cost_less_than_awaited_ones() -> None:
    awaited = step_time(sharded(16, data_overlap=False))
    assert step_time(sharded(16)).data < awaited.data
    tensor = job(degrees=Degrees(tp=8), sp=True, fabric=fabric(8))
    hidden = step_time(replace(tensor, tensor_overlap=True))
    assert hidden.tensor == pytest.approx(FITTED.tp_exposed * step_time(tensor).tensor)


def test_tensor_parallelism_across_nodes_is_slower_than_inside_one() -> None:
    inside = step_time(job(degrees=Degrees(tp=8), fabric=fabric(8)))
    across = job(degrees=Degrees(tp=8), fabric=replace(fabric(8), island=1))
    assert step_time(across).tensor > 3 * inside.tensor


def test_gathering_for_every_micro_batch_costs_more_than_once() -> None:
    each = sharded(16, num_micro_batches=8)
    once = replace(each, gathers_each=False, scatters_each=False)
    assert step_time(once).data < step_time(each).data / 4


def test_experts_on_other_nodes_are_reached_over_the_network() -> None:
    moe = model_preset("mixtral-8x7b")
    near = job(model=moe, degrees=Degrees(dp=8, ep=8), fabric=fabric(8))
    far = replace(near, fabric=replace(fabric(8), island=1))
    assert step_time(far).experts > 2 * step_time(near).experts
    assert step_time(replace(near, schedule="dualpipe")).experts == 0.0


def test_the_ring_of_keys_hides_behind_attention_and_ulysses_does_not() -> None:
    ring = job(degrees=Degrees(cp=8), fabric=fabric(8))
    assert 0 < step_time(ring).context < step_time(replace(ring, cp_kind="ulysses")).context


def test_a_pipeline_waits_and_its_last_stage_has_the_head() -> None:
    stages = tuple(tuple(range(8 * rank, 8 * rank + 8)) for rank in range(4))
    split = job(degrees=Degrees(pp=4), stages=stages, num_micro_batches=16, fabric=fabric(4))
    time = step_time(split)
    assert time.compute > step_time(job(num_micro_batches=16)).compute / 4
    assert 0.1 < time.bubble / time.compute < 0.2  # 3 / 16 were stages even
    closed = step_time(split, wait=even_waiting)
    assert time.total == pytest.approx(closed.total, rel=0.02)


def test_a_prediction_module_costs_a_layer_and_a_head() -> None:
    model = job().model
    more = step_time(job(model=replace(model, num_mtp_layers=1))).compute
    extra = more - step_time(job()).compute
    layer = (
        step_time(job()).compute
        - step_time(job(stages=(tuple(range(31)),), model=replace(model, num_layers=31))).compute
    )
    assert extra > layer


def test_the_optimizer_updates_what_a_rank_keeps_moments_of() -> None:
    count = count_parameters(job().model)
    held = exchanges.heaviest(job(), count)
    whole = exchanges.optimizer(job(), FITTED, held)
    parts = exchanges.optimizer(sharded(8), FITTED, held)
    assert parts == pytest.approx(whole / 8)


def test_every_constant_lies_in_its_interval_and_there_are_at_most_20() -> None:
    assert len(fields(Constants)) <= 20
    for field in fields(Constants):
        data = field.metadata
        assert data["low"] <= getattr(FITTED, field.name) <= data["high"], field.name
        assert data["low"] <= data["expected"] <= data["high"], field.name


@pytest.mark.parametrize("name", [field.name for field in fields(Constants)])
def test_every_constant_changes_some_prediction(name: str) -> None:
    moved = replace(FITTED, **{name: getattr(FITTED, name) * 1.5 + 1e-7})
    moe = job(model=model_preset("mixtral-8x7b"), degrees=Degrees(dp=16, ep=8), fabric=fabric(16))
    tensor = job(degrees=Degrees(tp=8), tensor_overlap=True, fabric=fabric(8), arithmetic="fp8")
    kinds = [
        replace(base, attention=attention, product=product)
        for base in (moe, tensor, sharded(16), replace(moe, fabric=replace(moe.fabric, island=72)))
        for attention in ("fused", "tuned")
        for product in (
            base.product,
            replace(base.product, key="b200"),
            replace(base.product, key="a100-80g"),
            replace(base.product, key="h100-500w"),
        )
    ]
    assert any(step_time(kind, moved).total != step_time(kind).total for kind in kinds)
