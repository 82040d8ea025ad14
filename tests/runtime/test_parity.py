"""Every parallel form trains as one process does: loss and gradient norm, step by step.

In float64 both agree to 1e-10 relative, which proves the algebra: only the order of sums differs.
In float32 the same order of sums leaves 1e-5. The gradient norm is taken before clipping, and would
show a mis-scaled gradient that Adam hides.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.harness import read_logs, train_to_end
from tests.runtime.plans import GPT, LLAMA, plan

from parctl.recipes.spec import ModelSpec

Metrics = list[dict[str, Any]]
Reference = Callable[..., Metrics]

TIED = replace(LLAMA, tied_embeddings=True)
SCALED = replace(
    LLAMA,
    rope_scaling={
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_seq_len": 16.0,
    },
)
NEMOTRON = replace(LLAMA, norm="layernorm", activation="squared-relu", rope_fraction=0.5)
ODD_VOCABULARY = replace(LLAMA, vocab_size=257)


@pytest.fixture(scope="module")
def one_process(
    text: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[ModelSpec, dict[str, Any]], Metrics]:
    """Return a function that trains in one process, once for each model and training spec."""
    done: dict[str, Metrics] = {}

    def reference(model: ModelSpec, train: dict[str, Any]) -> Metrics:
        key = repr((model, sorted(train.items())))
        if key not in done:
            run_dir = tmp_path_factory.mktemp("one")
            done[key] = train_to_end(plan(text, {}, model=model, train=train), run_dir)
        return done[key]

    return reference


def assert_equal(metrics: Metrics, expected: Metrics, tolerance: float) -> None:
    assert len(metrics) == len(expected) == 4
    for ours, reference in zip(metrics, expected, strict=True):
        for key in ("loss", "grad_norm"):
            assert ours[key] == pytest.approx(reference[key], rel=tolerance), (ours["step"], key)


FORMS: dict[str, tuple[dict[str, int], dict[str, Any]]] = {
    "ddp2": ({"dp": 2}, {}),
    "ddp4": ({"dp": 4}, {}),
    "zero2 of 2": ({"fsdp": 2}, {"zero_stage": 2}),
    "fsdp2": ({"fsdp": 2}, {}),
    "fsdp4": ({"fsdp": 4}, {}),
    "hsdp2x2": ({"dp": 2, "fsdp": 2}, {}),
    "tp2": ({"tp": 2}, {}),
    "tp2+sp": ({"tp": 2}, {"sp": True}),
    "tp4 with 2 kv heads": ({"tp": 4}, {}),
    "tp4+sp with 2 kv heads": ({"tp": 4}, {"sp": True}),
    "tp2+fsdp2": ({"fsdp": 2, "tp": 2}, {}),
    "tp2+sp+fsdp2": ({"fsdp": 2, "tp": 2}, {"sp": True}),
    "dp2+tp2": ({"dp": 2, "tp": 2}, {}),
    "dp2+tp2+sp": ({"dp": 2, "tp": 2}, {"sp": True}),
    "dp2+tp2+sp+fsdp2": ({"dp": 2, "fsdp": 2, "tp": 2}, {"sp": True}),
    "permuted ranks": ({"fsdp": 2, "tp": 2}, {"sp": True, "ranks": (3, 1, 0, 2)}),
    "tp outermost": ({"tp": 2, "fsdp": 2}, {"sp": True}),
}


@pytest.mark.parametrize("form", FORMS)
def test_llama_equals_one_process_in_float64(
    form: str, text: Path, tmp_path: Path, one_process: Reference
) -> None:
    axes, options = FORMS[form]
    metrics = train_to_end(plan(text, axes, **options), tmp_path)
    assert_equal(metrics, one_process(LLAMA, {}), 1e-10)


MODELS: dict[str, tuple[ModelSpec, dict[str, int], bool]] = {
    "gpt ddp2": (GPT, {"dp": 2}, False),
    "gpt tp2": (GPT, {"tp": 2}, False),
    "gpt tp2+sp+fsdp2": (GPT, {"fsdp": 2, "tp": 2}, True),
    "gpt untied dp2+tp2": (replace(GPT, tied_embeddings=False), {"dp": 2, "tp": 2}, False),
    "tied llama fsdp2": (TIED, {"fsdp": 2}, False),
    "tied llama tp2+sp+fsdp2": (TIED, {"fsdp": 2, "tp": 2}, True),
    "llama 3.1 frequencies tp2+sp": (SCALED, {"tp": 2}, True),
    "partial rope and squared relu tp2+sp": (NEMOTRON, {"tp": 2}, True),
    "vocabulary that tp does not divide": (ODD_VOCABULARY, {"tp": 2}, True),
    "dim that fsdp does not divide": (ODD_VOCABULARY, {"fsdp": 3}, False),
}


@pytest.mark.parametrize("case", MODELS)
def test_model_families_equal_one_process_in_float64(
    case: str, text: Path, tmp_path: Path, one_process: Reference
) -> None:
    model, axes, sp = MODELS[case]
    train = {"global_batch": 6, "micro_batch": 1} if axes.get("fsdp") == 3 else {}
    metrics = train_to_end(plan(text, axes, model=model, sp=sp, train=train), tmp_path)
    assert_equal(metrics, one_process(model, train), 1e-10)


@pytest.mark.parametrize("recompute", ["selective", "full"])
@pytest.mark.parametrize("axes", [{"fsdp": 2, "tp": 2}, {"dp": 2}], ids=str)
def test_recomputation_changes_nothing(
    recompute: str, axes: dict[str, int], text: Path, tmp_path: Path, one_process: Reference
) -> None:
    made = plan(text, axes, sp="tp" in axes, train={"recompute": recompute})
    assert_equal(train_to_end(made, tmp_path), one_process(LLAMA, {}), 1e-10)


@pytest.mark.parametrize("form", ["ddp2", "fsdp2", "tp2", "tp2+sp+fsdp2"])
def test_llama_equals_one_process_in_float32(
    form: str, text: Path, tmp_path: Path, one_process: Reference
) -> None:
    axes, options = FORMS[form]
    metrics = train_to_end(plan(text, axes, train={"precision": "fp32"}, **options), tmp_path)
    assert_equal(metrics, one_process(LLAMA, {"precision": "fp32"}), 1e-5)


@pytest.mark.parametrize("form", ["ddp2", "fsdp2", "tp2+sp", "tp2+sp+fsdp2"])
def test_bfloat16_stays_close_to_one_process(
    form: str, text: Path, tmp_path: Path, one_process: Reference
) -> None:
    """bfloat16 keeps 8 bits (0.4%), and sums over tp are rounded: norms to 2%, losses to 0.5%."""
    axes, options = FORMS[form]
    metrics = train_to_end(plan(text, axes, train={"precision": "bf16"}, **options), tmp_path)
    for ours, reference in zip(metrics, one_process(LLAMA, {"precision": "bf16"}), strict=True):
        assert ours["loss"] == pytest.approx(reference["loss"], rel=0.005)
        assert ours["grad_norm"] == pytest.approx(reference["grad_norm"], rel=0.02)


def test_bfloat16_is_close_to_float32(text: Path, one_process: Reference) -> None:
    precise = one_process(LLAMA, {"precision": "fp32"})
    for ours, reference in zip(one_process(LLAMA, {"precision": "bf16"}), precise, strict=True):
        assert ours["loss"] == pytest.approx(reference["loss"], rel=0.005)
        assert ours["loss"] != reference["loss"]


def test_same_seed_gives_the_same_bits(text: Path, tmp_path: Path) -> None:
    made = plan(
        text,
        {"fsdp": 2, "tp": 2},
        sp=True,
        model=replace(LLAMA, dropout=0.1),
        train={"precision": "fp32"},
    )
    first = train_to_end(made, tmp_path / "first")
    second = train_to_end(made, tmp_path / "second")
    assert [(m["loss"], m["grad_norm"]) for m in first] == [
        (m["loss"], m["grad_norm"]) for m in second
    ]


def test_metrics_and_log_follow_the_contract(text: Path, tmp_path: Path) -> None:
    made = replace(
        plan(text, {"fsdp": 2}, train={"precision": "fp32", "steps": 3}),
        time={"model_flops_per_token": 1e6, "peak_flops_per_device": None},
    )
    metrics = train_to_end(made, tmp_path)
    assert [m["step"] for m in metrics] == [1, 2, 3]
    assert [m["tokens"] for m in metrics] == [128, 256, 384]
    assert {"run": "test-000000", "attempt": 1}.items() <= metrics[0].items()
    assert metrics[0]["mfu"] is None
    assert metrics[0]["tokens_per_s"] == 2 * metrics[0]["tokens_per_s_per_gpu"]
    assert metrics[0]["model_tflops_per_gpu"] == metrics[0]["tokens_per_s_per_gpu"] * 1e6 / 1e12
    assert "step 3/3 loss " in read_logs(tmp_path)
