"""Bytes per step on each axis, by hand."""

import pytest

from parctl.planner.degrees import Degrees, with_degrees
from parctl.planner.stages import split_layers
from parctl.planner.traffic import bytes_per_step
from parctl.recipes.loader import load_recipe

# tiny-llama: 4 layers, h 128, k 4, d 16; 2 sequences of 128 tokens in fp32
HIDDEN = 4 * 256 * 128
PARAMETERS = 853_120


def traffic(form: str, *overrides: str, name: str = "tiny-llama") -> dict[str, float]:
    base = ["train.micro_batch=2", "train.global_batch=16", "train.precision=fp32"]
    recipe = load_recipe(f"{name}: {form}", [*base, *overrides])
    spec = recipe.parallelism
    degrees = Degrees(
        pp=spec.pp or 1,
        dp=spec.dp or 1,
        fsdp=spec.fsdp or 1,
        cp=spec.cp or 1,
        tp=spec.tp or 1,
        ep=spec.ep or 1,
        etp=spec.etp or 1,
    )
    assert recipe.model is not None and with_degrees(spec, degrees) == spec
    stages = split_layers(recipe.model, degrees.pp * spec.virtual_stages)
    return bytes_per_step(recipe, degrees, stages)


def test_an_axis_of_one_sends_nothing() -> None:
    assert traffic("DP1") == {}


@pytest.mark.parametrize("form", ["TP2", "TP2+SP"])
def test_tensor_parallelism_sends_the_same_with_and_without_sp(form: str) -> None:
    # 4 layers, 8 micro-batches, 4 all-reduces of 2 (n-1)/n
    assert traffic(form) == {"tp": 4 * 8 * 4 * 2 * HIDDEN / 2}


def test_data_parallelism_sends_gradients_once() -> None:
    assert traffic("DP4") == {"dp": 2 * 3 / 4 * 4 * PARAMETERS}


def test_fsdp_gathers_twice_and_scatters_for_every_micro_batch() -> None:
    # 16 sequences / (2 x 4) = 2 micro-batches
    assert traffic("FSDP4") == {"fsdp": 2 * 3 / 4 * (4 + 4 + 4) * PARAMETERS}


def test_zero_1_exchanges_once_per_step() -> None:
    assert traffic("ZERO14") == {"fsdp": 3 / 4 * 8 * PARAMETERS}


def test_hybrid_shards_are_averaged_between_replicas() -> None:
    sent = traffic("HSDP2x2")
    assert sent["dp"] == 2 * 1 / 2 * 4 * PARAMETERS / 2


def test_the_pipeline_sends_one_boundary_both_ways() -> None:
    assert traffic("PP2") == {"pp": 8 * 2 * HIDDEN}
    assert traffic("TP2+SP+PP2")["pp"] == 8 * 2 * HIDDEN / 2


def test_ring_attention_sends_keys_and_values_round() -> None:
    # 64 tokens per rank of 2 sequences; 1 of 2 steps crosses; forward once, backward twice
    keys_values = 4 * 2 * 4 * 16 * 128
    assert traffic("CP2") == {"cp": 4 * 8 * 3 * keys_values}


def test_ulysses_sends_eight_all_to_alls() -> None:
    assert traffic("CP2@ulysses") == {"cp": 4 * 8 * 8 * (HIDDEN / 2) / 2}


def test_experts_send_their_tokens_and_their_gradients_go_elsewhere() -> None:
    recipe = load_recipe("tiny-moe: DP4+EP2")
    assert recipe.model is not None and recipe.model.moe is not None
    sent = traffic("DP4+EP2", name="tiny-moe")
    tokens = 2 * recipe.train.seq_len if recipe.train else 0
    hidden = 4 * tokens * recipe.model.dim
    moe_layers = recipe.model.num_layers
    assert sent["ep"] == moe_layers * 2 * 4 * hidden * recipe.model.moe.top_k / 2
    assert set(sent) == {"dp", "ep", "edp"}


@pytest.mark.parametrize(
    ("form", "shares"),
    [
        # tp ranks deal the rows out among them, with or without sp
        ("DP2+TP2+EP2", 2),
        ("DP2+TP2+SP+EP2", 2),
        # both hold a part of every expert, and send the same rows
        ("DP2+TP2+SP+EP2+ETP2", 1),
    ],
)
def test_tensor_ranks_share_the_rows_that_experts_get(form: str, shares: int) -> None:
    recipe = load_recipe(f"tiny-moe: {form}")
    assert recipe.model is not None and recipe.model.moe is not None and recipe.train is not None
    hidden = 4 * 2 * recipe.train.seq_len * recipe.model.dim
    # 4 micro-batches of 2 sequences on each of 2 data ranks
    sent = 4 * hidden * recipe.model.moe.top_k / 2 / shares * recipe.model.num_layers * 4
    assert traffic(form, name="tiny-moe")["ep"] == sent
