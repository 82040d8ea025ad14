"""ZeRO's stages, and when gradients are exchanged and parameters freed, change no number."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.harness import train_to_end
from tests.runtime.plans import plan

from parctl.runtime.checkpoint.directory import COMPLETE

Metrics = list[dict[str, Any]]

FORMS: dict[str, tuple[dict[str, int], dict[str, Any]]] = {
    "zero1": ({"fsdp": 2}, {"zero_stage": 1}),
    "zero1 x tp2+sp": ({"fsdp": 2, "tp": 2}, {"zero_stage": 1, "sp": True}),
    "zero1 x pp2": ({"pp": 2, "fsdp": 2}, {"zero_stage": 1}),
    "zero1, replicated": ({"dp": 2, "fsdp": 2}, {"zero_stage": 1}),
    "zero2 x tp2": ({"fsdp": 2, "tp": 2}, {"zero_stage": 2}),
    "zero2, last": ({"fsdp": 2}, {"zero_stage": 2, "spec": {"grad_sync": "last"}}),
    "zero3, last": ({"fsdp": 2}, {"spec": {"grad_sync": "last"}}),
    "ddp, each": ({"dp": 2}, {"spec": {"grad_sync": "each"}}),
    "always freed": ({"fsdp": 2}, {"spec": {"reshard": "always"}}),
    "never freed": ({"fsdp": 2}, {"spec": {"reshard": "never"}}),
    "cp outside fsdp": ({"cp": 2, "fsdp": 2}, {}),
    "kept in groups of 2": ({"fsdp": 4}, {"spec": {"reshard": 2}}),
    "prefetch 2, run again": (
        {"fsdp": 2},
        {"spec": {"prefetch": 2}, "train": {"recompute": "full"}},
    ),
}


@pytest.fixture(scope="module")
def one_process(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Metrics:
    return train_to_end(plan(text, {}), tmp_path_factory.mktemp("one"))


def assert_equal(metrics: Metrics, expected: Metrics) -> None:
    assert [line["step"] for line in metrics] == [line["step"] for line in expected]
    for ours, reference in zip(metrics, expected, strict=True):
        for key in ("loss", "grad_norm"):
            assert ours[key] == pytest.approx(reference[key], rel=1e-10), (ours["step"], key)


@pytest.mark.parametrize("form", FORMS)
def test_the_form_equals_one_process(
    form: str, text: Path, tmp_path: Path, one_process: Metrics
) -> None:
    axes, options = FORMS[form]
    assert_equal(train_to_end(plan(text, axes, **options), tmp_path), one_process)


SAVES: dict[str, Callable[[Path], Any]] = {
    "zero1 x tp2+sp, then zero3": lambda text: (
        plan(text, {"fsdp": 2, "tp": 2}, zero_stage=1, sp=True),
        plan(text, {"fsdp": 2}),
    ),
    "ddp, then zero1": lambda text: (
        plan(text, {"dp": 2}),
        plan(text, {"fsdp": 2}, zero_stage=1),
    ),
}


@pytest.mark.parametrize("case", SAVES)
def test_optimizer_state_moves_to_another_layout_by_name(
    case: str, text: Path, tmp_path: Path, one_process: Metrics
) -> None:
    saving = {"dir": str(tmp_path / "saved"), "every": 2, "at_end": True}
    first, second = SAVES[case](text)
    assert first.recipe.checkpoint
    spec = replace(first.recipe.checkpoint, **saving)
    runs = [replace(made, recipe=replace(made.recipe, checkpoint=spec)) for made in (first, second)]
    train_to_end(runs[0], tmp_path / "first")
    (tmp_path / "saved" / "step-00000004" / COMPLETE).unlink()
    assert_equal(train_to_end(runs[1], tmp_path / "second"), one_process[2:])
