"""Arithmetic of degrees and batches."""

import pytest

from parctl.errors import UsageError
from parctl.planner.degrees import (
    Degrees,
    check_batch,
    devices_asked_for,
    given_degrees,
    named_axes,
    num_micro_batches,
    with_degrees,
)
from parctl.recipes.loader import load_recipe


def test_given_and_named_axes_differ() -> None:
    spec = load_recipe("llama-3-8b: TP8+FSDP").parallelism
    assert given_degrees(spec) == {"pp": 1, "dp": 1, "cp": 1, "operator": 1, "tp": 8}
    assert named_axes(spec) == ("fsdp", "tp")


def test_devices_asked_for_is_the_product_only_when_all_degrees_are_given() -> None:
    assert devices_asked_for(load_recipe("tiny-llama: TP2+SP+FSDP2").parallelism) == 4
    assert devices_asked_for(load_recipe("tiny-llama: TP2+SP+FSDP").parallelism) is None
    assert devices_asked_for(load_recipe("tiny-llama: auto").parallelism) is None


def test_a_batch_that_does_not_divide_names_the_nearest() -> None:
    recipe = load_recipe("llama-3-8b: FSDP", ["train.global_batch=512", "train.micro_batch=2"])
    with pytest.raises(UsageError) as caught:
        check_batch(recipe, Degrees(dp=3, fsdp=16))
    assert caught.value.message == (
        "<line>: train.global_batch = 512, expected a multiple of "
        "micro_batch(2) x dp(3) x fsdp(16) = 96"
    )
    assert caught.value.hint == "set train.global_batch to 480 or 576"
    assert caught.value.exit_code == 2


def test_a_batch_below_one_step_names_the_only_choice() -> None:
    recipe = load_recipe("llama-3-8b: FSDP", ["train.global_batch=4"])
    with pytest.raises(UsageError) as caught:
        check_batch(recipe, Degrees(fsdp=16))
    assert caught.value.hint == "set train.global_batch to 16"


def test_tensor_and_context_ranks_share_a_sequence() -> None:
    recipe = load_recipe("llama-3-8b: FSDP", ["train.global_batch=512"])
    degrees = Degrees(dp=2, fsdp=16, cp=4, tp=8, pp=2)
    check_batch(recipe, degrees)
    assert num_micro_batches(recipe, degrees) == 16
    assert degrees.world_size == 2048


def test_resolved_degrees_are_written_into_the_spec_and_the_text_stays() -> None:
    spec = with_degrees(load_recipe("llama-3-8b: TP+FSDP").parallelism, Degrees(tp=2, fsdp=8))
    assert (spec.tp, spec.fsdp, spec.dp, spec.text) == (2, 8, 1, "TP+FSDP")
