"""Memory by stage, and the verdict."""

import pytest

from parctl.planner.degrees import Degrees
from parctl.planner.memory import (
    GPU_BUFFER_BYTES,
    TERMS,
    estimate_memory,
    unsharded_state_bytes,
)
from parctl.recipes.loader import load_recipe
from parctl.recipes.parameters import num_parameters


def test_terms_add_up_but_loss_and_recompute_are_never_together() -> None:
    recipe = load_recipe("llama-3-8b: FSDP8", ["train.recompute=full"])
    stage = estimate_memory(recipe, Degrees(fsdp=8), device_bytes=None, kind="gpu").worst
    assert stage.logits > stage.working > 0
    assert stage.total == sum(getattr(stage, term) for term in TERMS) - stage.working
    assert stage.buffers == GPU_BUFFER_BYTES


def test_fits_compares_with_what_is_usable_of_the_device() -> None:
    recipe, degrees = load_recipe("llama-3-8b: FSDP8"), Degrees(fsdp=8)
    needed = estimate_memory(recipe, degrees, device_bytes=None, kind="gpu").worst.total
    for device_bytes, fits in [(None, None), (needed, False), (needed * 10 // 9 + 9, True)]:
        memory = estimate_memory(recipe, degrees, device_bytes=device_bytes, kind="gpu")
        assert memory.fits is fits


def test_the_first_stage_of_1f1b_is_the_worst() -> None:
    recipe = load_recipe("llama-3-8b: PP4", ["train.micro_batch=1", "train.recompute=none"])
    memory = estimate_memory(recipe, Degrees(pp=4), device_bytes=None, kind="gpu")
    assert [stage.micro_batches for stage in memory.stages] == [4, 3, 2, 1]
    assert memory.worst.stage == 0
    assert [stage.logits > 0 for stage in memory.stages] == [False, False, False, True]


def test_virtual_stages_are_counted_on_the_rank_that_runs_them() -> None:
    recipe = load_recipe("llama-3-8b: PP2@zbv")
    memory = estimate_memory(
        recipe,
        Degrees(pp=2),
        stages=((0, 1), (2, 3), (4, 5, 6), tuple(range(7, 32))),
        device_bytes=None,
        kind="gpu",
    )
    assert [stage.layers for stage in memory.stages] == [27, 5]
    assert [stage.logits > 0 for stage in memory.stages] == [True, False]


def test_parameters_of_all_stages_are_the_models() -> None:
    recipe = load_recipe("llama-3.1-405b: PP16")
    memory = estimate_memory(recipe, Degrees(pp=16), device_bytes=None, kind="gpu")
    assert recipe.model is not None
    assert sum(stage.parameters for stage in memory.stages) == num_parameters(recipe.model)


@pytest.mark.parametrize(("tp", "gigabytes"), [(1, 128.48), (2, 64.24), (8, 16.06)])
def test_state_of_llama_8b_before_the_data_axes_share_it(tp: int, gigabytes: float) -> None:
    recipe = load_recipe("llama-3-8b: FSDP")
    state = unsharded_state_bytes(recipe, Degrees(tp=tp))
    assert state / 1e9 == pytest.approx(gigabytes, rel=1e-3)


def test_the_json_names_every_term_and_the_convention() -> None:
    recipe = load_recipe("llama-3-8b: FSDP8")
    document = estimate_memory(
        recipe, Degrees(fsdp=8), device_bytes=80_000_000_000, kind="gpu"
    ).to_json()
    assert document["fits"] is True
    assert document["usable_bytes"] == 72_000_000_000
    assert "4 B weights + 4 B gradients + 8 B AdamW moments" in document["regime"]
    assert set(TERMS) < set(document["stages"][0])
