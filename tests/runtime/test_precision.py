"""float8 by hand, compiled blocks, and totals that are read late."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.runtime.harness import fork_ranks, read_metrics, run_ranks, train_to_end
from tests.runtime.plans import LLAMA, TRAIN, plan

from parctl.errors import ParctlError
from parctl.runtime.execution.float8 import GRADIENTS, VALUES, product_in_float8, scaled
from parctl.runtime.totals import Totals, Watch
from parctl.runtime.worker import TermSignal, run_plan

WIDE = replace(LLAMA, num_kv_heads=4)


def product_and_gradients() -> dict[str, list[Any]]:
    """Numbers that e4m3 and e5m2 hold exactly once the largest is scaled to fit."""
    x = torch.tensor([[448.0, 224.0] * 8] * 16, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.tensor([[1.0, -0.5] * 8] * 16, dtype=torch.bfloat16, requires_grad=True)
    out = product_in_float8(x, weight)
    out.backward(torch.full_like(out, 0.25))  # type: ignore[no-untyped-call]
    assert x.grad is not None and weight.grad is not None
    return {
        "out": out.detach()[0, :2].tolist(),
        "dx": x.grad[0, :2].tolist(),
        "dw": weight.grad[0, :2].tolist(),
    }


def test_a_product_in_float8_and_its_gradients_by_hand(tmp_path: Path) -> None:
    (found,) = run_ranks(product_and_gradients, 1, tmp_path)
    assert found["out"] == [8 * (448 - 112)] * 2
    assert found["dx"] == [16 * 0.25, 16 * -0.125]
    assert found["dw"] == [16 * 0.25 * 448, 16 * 0.25 * 224]


def test_scaling_makes_the_largest_element_just_fit() -> None:
    x = torch.tensor([1.0, -3.0])
    for dtype, largest in ((VALUES, 448.0), (GRADIENTS, 57344.0)):
        small, scale = scaled(x, dtype)
        assert small.float().tolist()[1] == -largest
        assert float(scale) == pytest.approx(3.0 / largest)
    zeros, scale = scaled(torch.zeros(2), VALUES)
    assert zeros.float().tolist() == [0.0, 0.0] and float(scale) > 0


@pytest.mark.parametrize("axes", [{"fsdp": 2}, {"tp": 2}], ids=str)
def test_float8_trains_close_to_bfloat16(axes: dict[str, int], text: Path, tmp_path: Path) -> None:
    """3 bits of fraction, 6%: the noise of products averages out in sums over 32 and more."""
    reference = train_to_end(
        plan(text, {}, model=WIDE, train={"precision": "bf16"}), tmp_path / "bf16"
    )
    metrics = train_to_end(plan(text, axes, model=WIDE, train={"precision": "fp8"}), tmp_path)
    for ours, theirs in zip(metrics, reference, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.02)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=0.1)
        assert ours["loss"] != theirs["loss"]


@pytest.mark.slow
def test_compiled_blocks_compute_the_same(text: Path, tmp_path: Path) -> None:
    """Nearly all of it is the C++ compiler. What one rank compiles, two find in its cache."""
    train = {"steps": 2}
    reference = train_to_end(plan(text, {}, train=train), tmp_path / "one")
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    for axes in ({}, {"fsdp": 2}):
        made = plan(text, axes, train={**train, "compile": True, "recompute": "full"})
        size, run_dir = made.layout.world_size, tmp_path / f"compiled-{len(axes)}"
        results = fork_ranks(
            run_compiled, size, run_dir, made, run_dir, environment=cache, timeout_s=300
        )
        assert [result.error for result in results] == [None] * size
        for ours, theirs in zip(read_metrics(run_dir), reference, strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-10)
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-10)


def run_compiled(made: Any, run_dir: Path) -> None:
    warnings.simplefilter("ignore")  # torch's compiler uses what torch itself has deprecated
    run_plan(made, run_dir, TermSignal())


def totals(step: int, loss: float, *, stops: float = 0.0) -> Totals:
    return Totals(step, torch.tensor([loss, 4.0, stops, 0.0, 0.0], dtype=torch.float64))


def test_totals_are_read_a_step_late_or_at_once() -> None:
    watch = Watch(TRAIN, print)
    assert not watch.see(totals(1, 3.0), at_once=False)
    assert not watch.see(totals(2, 2.5), at_once=False)
    assert watch.latest.step == 1
    assert not watch.see(totals(3, 2.0), at_once=True)
    assert (watch.latest.step, watch.latest.loss, watch.latest.grad_norm) == (3, 2.0, 2.0)


def test_a_request_to_leave_is_seen_one_step_later_with_that_steps_numbers() -> None:
    watch = Watch(TRAIN, print)
    assert not watch.see(totals(1, 3.0, stops=1.0), at_once=False)
    assert watch.see(totals(2, 2.5), at_once=False)
    assert watch.latest.step == 2


def test_divergence_is_found_before_anything_later_is_used() -> None:
    watch = Watch(TRAIN, print)
    nan = totals(1, float("nan"))
    assert float(nan.diverged) == 1.0 and float(totals(1, 3.0).diverged) == 0.0
    assert not watch.see(nan, at_once=False)
    with pytest.raises(ParctlError, match="training diverged at step 1: loss nan"):
        watch.see(totals(2, 2.5), at_once=True)


def test_steps_are_left_out_until_there_are_too_many_in_a_row() -> None:
    said: list[str] = []
    watch = Watch(replace(TRAIN, on_nan="skip", max_skips=2), said.append)
    for step, loss in enumerate([float("inf"), 3.0, float("nan"), float("nan")], start=1):
        watch.see(totals(step, loss), at_once=True)
    assert said == [
        f"step {n} is left out: loss {v}" for n, v in ((1, "inf"), (3, "nan"), (4, "nan"))
    ]
    with pytest.raises(ParctlError, match="at step 5"):
        watch.see(totals(5, float("nan")), at_once=True)
