"""What cannot run is refused by name before any process starts, and without torch."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.moe_models import MODELS
from tests.runtime.plans import GPT, LLAMA, TRAIN, plan

from parctl.errors import NotBuiltError, UsageError
from parctl.recipes.spec import Recipe
from parctl.runtime.supported import refuse_unbuilt

ENCODER = {"family": "t5", "num_encoder_layers": 2, "positions": "relative"}


def recipe(**changes: Any) -> Recipe:
    """A recipe that runs, with changes to its parts."""
    made = plan("text.txt", {}).recipe
    for name in ("parallelism", "train", "data", "checkpoint", "model"):
        if name in changes:
            changes[name] = replace(getattr(made, name), **changes[name])
    return replace(made, **changes)


def test_what_is_built_passes() -> None:
    for axes in (
        {"dp": 2},
        {"pp": 2},
        {"fsdp": 4},
        {"dp": 2, "fsdp": 2},
        {"tp": 2},
        {"fsdp": 2, "tp": 2},
    ):
        refuse_unbuilt(recipe(), axes)
    refuse_unbuilt(plan("text.txt", {"tp": 2}, model=GPT, sp=True).recipe, {"tp": 2})
    refuse_unbuilt(recipe(train={"precision": "bf16", "recompute": "selective"}), {"pp": 1})


def test_scripts_are_the_users_own() -> None:
    refuse_unbuilt(recipe(task="script"), {"pp": 8})


@pytest.mark.parametrize(
    ("changes", "axes", "named"),
    [
        ({"model": ENCODER | {"positions": "rope"}}, {}, "an encoder and rope positions"),
        ({"model": ENCODER}, {"pp": 2}, "PP of an encoder and its decoder"),
        ({"model": ENCODER}, {"cp": 2}, "CP with relative positions"),
        (
            {"model": ENCODER, "data": {"document_mask": True}},
            {},
            "data.document_mask with an encoder",
        ),
        ({"train": {"precision": "fp16"}}, {}, "train.precision fp16"),
        (
            {"model": {"sliding_window": 8}},
            {},
            "training with model.sliding_window 8 below train.seq_len",
        ),
        ({"checkpoint": {"dir": "s3://bucket/x"}}, {}, "checkpoint.dir s3://bucket/x"),
        ({"parallelism": {"operator": 2}}, {"ep": 2}, "operator 2 with ep 2"),
    ],
    ids=str,
)
def test_unbuilt_forms_are_named(changes: dict[str, Any], axes: dict[str, int], named: str) -> None:
    with pytest.raises(NotBuiltError) as caught:
        refuse_unbuilt(recipe(**changes), axes)
    assert named in caught.value.message
    assert "TP+SP" in (caught.value.hint or "")


def test_all_unbuilt_forms_are_named_at_once() -> None:
    both = recipe(train={"precision": "fp16"}, checkpoint={"dir": "gs://bucket/x"})
    with pytest.raises(NotBuiltError, match=r"train.precision fp16.*gs://bucket/x"):
        refuse_unbuilt(both, {"pp": 2})


def test_sizes_that_do_not_divide_are_refused_with_the_arithmetic() -> None:
    with pytest.raises(UsageError, match=r"model.num_heads = 4 is no multiple of 8 \(tp\)"):
        refuse_unbuilt(recipe(), {"tp": 8})
    with pytest.raises(
        UsageError, match=r"train.global_batch = 8 is no multiple of 6 \(micro_batch x dp x fsdp\)"
    ):
        refuse_unbuilt(recipe(), {"dp": 3})
    odd = recipe(train={"seq_len": 15}, parallelism={"sp": True})
    with pytest.raises(UsageError, match=r"train.seq_len = 15 is no multiple of 2"):
        refuse_unbuilt(odd, {"tp": 2})
    long = replace(recipe(train={"seq_len": 64}), model=GPT)
    with pytest.raises(UsageError, match=r"64 is longer than model.max_seq_len = 32"):
        refuse_unbuilt(long, {})
    three = replace(recipe(), model=replace(LLAMA, num_heads=12, num_kv_heads=3))
    with pytest.raises(UsageError, match=r"num_kv_heads = 3 neither divides tp = 2"):
        refuse_unbuilt(three, {"tp": 2})


def test_what_context_parallelism_cannot_split_is_refused_with_the_arithmetic() -> None:
    ring, ulysses = {"cp_kind": "ring"}, {"cp_kind": "ulysses"}
    refuse_unbuilt(recipe(parallelism=ring), {"cp": 2})
    refuse_unbuilt(recipe(parallelism=ulysses), {"cp": 4})  # 2 KV heads are repeated
    with pytest.raises(UsageError, match=r"train.seq_len = 24 is no multiple of 16 \(2 x cp x tp"):
        refuse_unbuilt(
            recipe(train={"seq_len": 24}, parallelism={**ring, "sp": True}), {"cp": 4, "tp": 2}
        )
    with pytest.raises(UsageError, match=r"model.dropout = 0.1 with a ring"):
        refuse_unbuilt(recipe(parallelism=ring, model={"dropout": 0.1}), {"cp": 2})
    with pytest.raises(UsageError, match=r"heads of a tp rank = 2 is no multiple of 4 \(cp, "):
        refuse_unbuilt(recipe(parallelism=ulysses), {"cp": 4, "tp": 2})
    with pytest.raises(UsageError, match=r"KV heads of a tp rank = 3 neither divide cp = 2"):
        refuse_unbuilt(
            recipe(parallelism=ulysses, model={"num_heads": 12, "num_kv_heads": 3}), {"cp": 2}
        )


def test_experts_that_cannot_be_split_are_refused_with_the_arithmetic() -> None:
    tiny = replace(recipe(), model=MODELS["mixtral"])
    refuse_unbuilt(tiny, {"fsdp": 2, "tp": 2, "ep": 2})
    with pytest.raises(UsageError, match=r"expert_ffn_dim = 24 is no multiple of 16 \(tp, without"):
        refuse_unbuilt(replace(tiny, model=replace(MODELS["mixtral"], num_heads=16)), {"tp": 16})
    with pytest.raises(UsageError, match=r"model.dim = 32 is no multiple of 3 \(ranks that shard"):
        refuse_unbuilt(replace(tiny, train=replace(TRAIN, global_batch=6)), {"fsdp": 3})
    odd = replace(tiny, train=replace(TRAIN, seq_len=15))
    with pytest.raises(UsageError, match=r"tokens per cp rank = 15 is no multiple of 2 \(tp"):
        refuse_unbuilt(odd, {"fsdp": 2, "tp": 2, "ep": 2})
    with pytest.raises(NotBuiltError, match="model with experts with biases"):
        refuse_unbuilt(replace(tiny, model=replace(MODELS["mixtral"], bias=True)), {})


def test_what_cannot_be_kept_in_parts_is_refused_with_the_arithmetic() -> None:
    refuse_unbuilt(recipe(train={"recompute": "partitioned"}), {"tp": 2})
    odd = recipe(train={"recompute_layers": ("full", "partitioned"), "seq_len": 15})
    with pytest.raises(UsageError, match=r"train.seq_len / cp = 15 is no multiple of 2 \(tp, "):
        refuse_unbuilt(odd, {"tp": 2})
    groups = recipe(parallelism={"reshard": 4}, train={"global_batch": 48})
    refuse_unbuilt(groups, {"fsdp": 8})
    for axes in ({"fsdp": 6}, {"fsdp": 4}):
        with pytest.raises(UsageError, match=r"reshard = 4 is no proper divisor of fsdp x cp"):
            refuse_unbuilt(groups, axes)
    narrow = recipe(train={"precision": "fp8"}, model={"num_kv_heads": 1})
    with pytest.raises(UsageError, match=r"head_dim x num_kv_heads / tp = 8 is no multiple of 16"):
        refuse_unbuilt(narrow, {})
    apart = recipe(train={"precision": "fp8"}, parallelism={"schedule": "zbv"})
    with pytest.raises(UsageError, match="schedule zbv makes gradients of weights apart"):
        refuse_unbuilt(apart, {"pp": 2})


def test_asking_needs_no_torch() -> None:
    code = (
        "import sys, parctl.runtime.supported as s; "
        "print([n for n in ('torch', 'numpy', 'pydantic') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path.cwd(), check=True
    )
    assert done.stdout.strip() == "[]"
