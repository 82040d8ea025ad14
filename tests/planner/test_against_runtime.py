"""What the planner predicts against what the runtime really holds.

State is exact to the byte. Activations are counted tensor by tensor; left out are rotary tables,
norm statistics and copies of small weights, which tests with tiny shapes make look larger than they
are. Peaks are sums of terms that do not all peak together, hence the wider bounds.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from tests.planner.live_bytes import Measured, measure
from tests.runtime.harness import run_ranks
from tests.runtime.moe_models import MIXTRAL

from parctl.planner.degrees import Degrees, with_degrees
from parctl.planner.memory import StageMemory, estimate_memory
from parctl.recipes.loader import load_recipe
from parctl.recipes.spec import MlaSpec, ModelSpec, Precision, Recipe, Recompute

GPT = {
    "family": "gpt",
    "activation": "gelu",
    "norm": "layernorm",
    "positions": "learned",
    "bias": True,
    "num_kv_heads": 8,
}
EXPERTS = {"family": "moe", "moe": replace(MIXTRAL, expert_ffn_dim=192)}
MLA = {
    "num_kv_heads": 8,
    "mla": MlaSpec(
        q_lora_rank=48, kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16
    ),
}
CASES: list[tuple[dict[str, int], bool, Recompute, Precision, dict[str, Any]]] = [
    ({"dp": 2}, False, "none", "fp32", {}),
    ({"fsdp": 2}, False, "none", "fp32", {}),
    ({"fsdp": 8}, False, "selective", "fp32", {}),
    ({"dp": 2, "fsdp": 2}, False, "full", "bf16", {}),
    ({"tp": 2}, False, "none", "fp32", {}),
    ({"tp": 2}, False, "selective", "fp32", {}),
    ({"tp": 2}, False, "full", "fp32", {}),
    ({"tp": 2}, False, "partitioned", "fp32", {}),
    ({"tp": 4}, False, "partitioned", "bf16", {}),
    ({"tp": 4}, True, "none", "fp32", {}),
    ({"tp": 8}, True, "none", "fp32", {}),  # more ranks than KV heads
    ({"fsdp": 2, "tp": 2}, True, "none", "bf16", {}),
    ({"fsdp": 2, "tp": 2}, True, "selective", "bf16", {}),
    ({"fsdp": 4, "tp": 4}, True, "full", "fp64", {}),
    ({"dp": 2, "fsdp": 2, "tp": 2}, True, "selective", "fp32", {}),
    ({"fsdp": 2}, False, "none", "fp32", MLA),
    ({"tp": 2}, True, "selective", "bf16", MLA),
    ({"tp": 2}, True, "none", "fp32", {"qk_norm": True}),
    ({"cp": 2}, False, "none", "fp32", MLA),
    ({"cp": 2}, False, "none", "fp32", {}),
    ({"fsdp": 2, "cp": 2}, False, "selective", "fp32", {}),
    ({"cp": 2, "tp": 2}, True, "selective", "bf16", {}),
    ({"fsdp": 2}, False, "none", "fp32", GPT),
    ({"tp": 2}, True, "none", "fp32", GPT),
    ({"fsdp": 2}, False, "none", "fp32", {"activation": "relu"}),
    ({"fsdp": 2}, False, "none", "fp32", {"activation": "squared-relu"}),
    ({"fsdp": 2}, False, "none", "fp32", EXPERTS),
    ({"fsdp": 2}, False, "selective", "fp32", EXPERTS),
    ({"tp": 2}, False, "none", "fp32", EXPERTS),
    ({"tp": 2}, True, "selective", "fp32", EXPERTS),
    ({"fsdp": 2}, False, "full", "bf16", EXPERTS),
]


def both(
    axes: Mapping[str, int],
    sp: bool,
    recompute: Recompute,
    precision: Precision,
    shape: Mapping[str, Any],
    directory: Path,
    cp_kind: Literal["ring", "ulysses"] = "ring",
) -> tuple[Measured, StageMemory]:
    base, degrees = load_recipe("tiny-llama"), Degrees(**axes)
    assert base.model is not None and base.train is not None
    # a vocabulary that the small tables which are left out do not outweigh
    model: ModelSpec = replace(base.model, vocab_size=320, **shape)
    train = replace(
        base.train,
        micro_batch=4,
        global_batch=8 * degrees.num_data_ranks,
        recompute=recompute,
        precision=precision,
    )
    spec = replace(
        with_degrees(base.parallelism, degrees),
        sp=sp,
        zero_stage=3 if degrees.fsdp > 1 else 0,
        cp_kind=cp_kind,
    )
    recipe: Recipe = replace(base, model=model, train=train, parallelism=spec)
    estimate = estimate_memory(recipe, degrees, device_bytes=None, kind="cpu").worst
    # in a fork: a process that has run a backward pass can fork no more ranks that train
    (measured,) = run_ranks(measure, 1, directory, recipe, axes)
    return measured, estimate


@pytest.mark.parametrize("recompute", ["none", "selective"])
def test_what_ulysses_keeps_is_predicted(recompute: Recompute, tmp_path: Path) -> None:
    measured, estimate = both({"cp": 2}, False, recompute, "fp32", {}, tmp_path, cp_kind="ulysses")
    assert estimate.activations == pytest.approx(measured.activations, rel=0.05)


@pytest.mark.parametrize(("axes", "sp", "recompute", "precision", "shape"), CASES)
def test_predicted_memory_is_what_the_runtime_holds(
    axes: dict[str, int],
    sp: bool,
    recompute: Recompute,
    precision: Precision,
    shape: dict[str, Any],
    tmp_path: Path,
) -> None:
    measured, estimate = both(axes, sp, recompute, precision, shape, tmp_path)

    assert measured.weights == estimate.weights
    assert measured.gradients == estimate.gradients
    assert measured.optimizer == estimate.optimizer
    if "fsdp" in axes:  # shards keep only the head whole, because backward begins with it
        assert 0 < measured.gathered <= estimate.gathered
    else:
        assert measured.gathered == estimate.gathered
    assert estimate.activations == pytest.approx(measured.activations, rel=0.05)
    peak = estimate.total - estimate.weights - estimate.optimizer
    assert 0.90 < peak / measured.peak < 1.15
