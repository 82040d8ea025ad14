"""Activation bytes by hand, and micro-batches in flight against the papers."""

from dataclasses import replace

import pytest

from parctl.planner.activations import (
    Kind,
    Shapes,
    in_flight,
    layer_activations,
    logits_bytes,
    outside_layers,
)
from parctl.planner.degrees import Degrees
from parctl.planner.schedules import action_table, most_held
from parctl.planner.states import REGIMES
from parctl.recipes.loader import load_recipe
from parctl.recipes.spec import ParallelismSpec, Precision, Recompute

# tiny-llama: h 128, a 8, k 4, d 16, f 384, V 256; 2 sequences of 128 tokens: T = 256
KIB = 1024


def shapes(
    degrees: Degrees,
    *,
    sp: bool = False,
    recompute: Recompute = "none",
    precision: Precision = "fp32",
    kind: Kind = "gpu",
) -> Shapes:
    recipe = load_recipe("tiny-llama", ["train.micro_batch=2"])
    assert recipe.model and recipe.train
    return Shapes(
        model=recipe.model,
        train=replace(recipe.train, recompute=recompute, precision=precision),
        spec=replace(recipe.parallelism, sp=sp),
        degrees=degrees,
        regime=REGIMES[precision],
        kind=kind,
    )


def test_one_rank_keeps_everything() -> None:
    hidden = 4 * 128 * 256  # 128 KiB
    attention = 4 * hidden + 4 * 8 * 256  # q, k, v, output; log-sum-exp
    swiglu = 4 * 4 * 384 * 256
    kept = layer_activations(shapes(Degrees()), 0)
    assert kept.stored == 2 * hidden + 2 * hidden + attention + swiglu == 2568 * KIB
    assert kept.working == 0


def test_tensor_parallelism_splits_all_but_the_matmul_inputs() -> None:
    assert layer_activations(shapes(Degrees(tp=2)), 0).stored == (512 + 260 + 768) * KIB


def test_sequence_parallelism_splits_the_norm_inputs_too() -> None:
    kept = layer_activations(shapes(Degrees(tp=2), sp=True), 0)
    assert kept.stored == (128 + 256 + 260 + 768) * KIB


def test_context_parallelism_divides_the_tokens() -> None:
    """A ring also keeps keys and values as they are, not repeated: 2 x 4 heads x 16 fewer."""
    whole = layer_activations(shapes(Degrees()), 0).stored
    assert layer_activations(shapes(Degrees(cp=4)), 0).stored * 4 == whole - 128 * KIB


def test_full_recompute_keeps_the_input_and_works_on_one_layer() -> None:
    everything = layer_activations(shapes(Degrees(tp=2), sp=True), 0).stored
    kept = layer_activations(shapes(Degrees(tp=2), sp=True, recompute="full"), 0)
    waiting = 64 + 192  # gradients of the stream, and of gate x up
    assert (kept.stored, kept.working) == (64 * KIB, everything - 64 * KIB + waiting * KIB)


def test_partitioned_recompute_splits_the_input_without_sp() -> None:
    full = layer_activations(shapes(Degrees(tp=2), recompute="full"), 0)
    split = layer_activations(shapes(Degrees(tp=2), recompute="partitioned"), 0)
    assert (full.stored, split.stored) == (128 * KIB, 64 * KIB)


def test_selective_recompute_keeps_matmul_results() -> None:
    # input 128, q k v 128 + 2 x 64, attention output 128 + 8, its projection 128, gate and up
    # 2 x 384 KiB; no gradient needs the result of down
    kept = layer_activations(shapes(Degrees(), recompute="selective"), 0)
    assert kept.stored == (128 + 256 + 136 + 128 + 768) * KIB


def test_bf16_halves_what_is_not_log_sum_exp() -> None:
    kept = layer_activations(shapes(Degrees(), precision="bf16"), 0)
    assert kept.stored == (2568 - 8) * KIB // 2 + 8 * KIB


def test_the_last_stage_keeps_the_final_norm_and_the_logits() -> None:
    assert outside_layers(shapes(Degrees(tp=2), sp=True)) == (64 + 128) * KIB
    assert logits_bytes(shapes(Degrees(tp=2))) == 256 * 128 * (4 + 4)
    assert logits_bytes(shapes(Degrees(tp=2), precision="bf16")) == 256 * 128 * (2 + 2)


def test_logits_of_llama_8b_at_8k_take_two_fifths_of_what_is_published() -> None:
    """10.5 GB with the loss in float32: a bf16 copy, log-probabilities and their gradient."""
    recipe = load_recipe("llama-3-8b: FSDP", ["train.seq_len=8192", "train.micro_batch=1"])
    assert recipe.model and recipe.train
    large = replace(
        shapes(Degrees()), model=recipe.model, train=recipe.train, regime=REGIMES["bf16"]
    )
    assert logits_bytes(large) / 1e9 == pytest.approx(10.5 * 4 / 10, rel=2e-3)


@pytest.mark.parametrize(
    ("form", "count", "expected"),
    [
        ("PP4@gpipe", 8, [8, 8, 8, 8]),
        ("PP4", 8, [4, 3, 2, 1]),
        ("PP4", 2, [2, 2, 2, 1]),
        # 2205.05198: the first rank holds p (1 + (p - 1) / (p v)) = 4 (1 + 3 / 8)
        ("PP4@interleaved-1f1b:2", 8, [5.5, 4.5, 3.5, 2.5]),
        ("PP4@zbv", 8, [4, 4, 4, 4]),
        ("PP4@zero-bubble", 8, [4, 4, 4, 4]),
        ("PP4@dualpipev", 8, [4.5, 4.5, 4.5, 4.5]),
        ("LAYER4", 8, [1, 1, 1, 1]),
    ],
)
def test_micro_batches_in_flight(form: str, count: int, expected: list[float]) -> None:
    spec: ParallelismSpec = load_recipe(f"llama-3-8b: {form}").parallelism
    assert [in_flight(stage, spec, Degrees(pp=4), count) for stage in range(4)] == expected
    held = [most_held(row) for row in action_table(spec, 4, count)]
    assert [stages / spec.virtual_stages for stages in held] == expected
