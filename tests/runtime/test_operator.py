"""Branches of a block on different ranks, or on two streams, compute what one device does."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.harness import train_to_end
from tests.runtime.moe_models import MODELS as MOE
from tests.runtime.plans import GPT, LLAMA, plan

MODELS = {
    "llama": replace(LLAMA, parallel_blocks=True),
    "gpt": replace(GPT, parallel_blocks=True),
    "dropout": replace(LLAMA, parallel_blocks=True, dropout=0.2),
    "experts": replace(MOE["mixtral"], parallel_blocks=True),
    "deepseek": replace(MOE["deepseek"], parallel_blocks=True),
}
CASES: dict[str, tuple[str, dict[str, int], dict[str, Any]]] = {
    "op2": ("llama", {"operator": 2}, {}),
    "op2 x dp2": ("llama", {"dp": 2, "operator": 2}, {}),
    "op2 x fsdp2, selective": (
        "llama",
        {"fsdp": 2, "operator": 2},
        {"train": {"recompute": "selective"}},
    ),
    "op2 x tp2+sp": ("llama", {"operator": 2, "tp": 2}, {"sp": True}),
    "op2 x pp2": ("llama", {"pp": 2, "operator": 2}, {}),
    "op2 x tp2, biases and tied": ("gpt", {"operator": 2, "tp": 2}, {}),
    "op2, dropout": ("dropout", {"operator": 2}, {}),
    "op2, dropout, full": ("dropout", {"operator": 2}, {"train": {"recompute": "full"}}),
    "op2, experts": ("experts", {"operator": 2}, {}),
    "op2 x tp2, experts": ("deepseek", {"operator": 2, "tp": 2}, {}),
    "tp2+sp alone": ("llama", {"tp": 2}, {"sp": True, "train": {"recompute": "selective"}}),
    "two streams": ("llama", {"dp": 2}, {"train": {"streams": 2}}),
}


@pytest.fixture(scope="module")
def one_process(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    done: dict[str, Any] = {}

    def reference(name: str) -> Any:
        if name not in done:
            made = plan(text, {}, model=MODELS[name])
            done[name] = train_to_end(made, tmp_path_factory.mktemp("one"))
        return done[name]

    return reference


@pytest.mark.parametrize("case", CASES)
def test_the_form_equals_one_process(
    case: str, text: Path, tmp_path: Path, one_process: Any
) -> None:
    name, axes, options = CASES[case]
    metrics = train_to_end(plan(text, axes, model=MODELS[name], **options), tmp_path)
    for ours, reference in zip(metrics, one_process(name), strict=True):
        assert ours["loss"] == pytest.approx(reference["loss"], rel=1e-10)
        assert ours["grad_norm"] == pytest.approx(reference["grad_norm"], rel=1e-10)


def test_a_parallel_block_is_another_model(text: Path, tmp_path: Path, one_process: Any) -> None:
    serial = train_to_end(plan(text, {}, train={"steps": 1}), tmp_path)[0]
    assert serial["grad_norm"] != pytest.approx(one_process("llama")[0]["grad_norm"], rel=1e-6)


def test_a_checkpoint_of_branches_apart_continues_together(
    text: Path, tmp_path: Path, one_process: Any
) -> None:
    saving = {"dir": str(tmp_path / "saved"), "every": 2, "at_end": True}
    apart = plan(text, {"operator": 2}, model=MODELS["llama"], checkpoint=saving)
    together = plan(text, {"fsdp": 2}, model=MODELS["llama"], checkpoint=saving)
    train_to_end(apart, tmp_path / "first")
    (tmp_path / "saved" / "step-00000004" / "COMPLETE").unlink()
    metrics = train_to_end(together, tmp_path / "second")
    assert [line["step"] for line in metrics] == [3, 4]
    for ours, reference in zip(metrics, one_process("llama")[2:], strict=True):
        assert ours["grad_norm"] == pytest.approx(reference["grad_norm"], rel=1e-10)
