"""Every pipeline schedule trains as one process does: loss and gradient norm, step by step.

In float64 both agree to 1e-10 relative: only the order of sums differs.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.harness import train_to_end
from tests.runtime.plans import GPT, LLAMA, plan

from parctl.recipes.spec import ModelSpec

Metrics = list[dict[str, Any]]
Reference = Callable[..., Metrics]

FOUR = replace(LLAMA, num_layers=4)
TRAIN = {"micro_batch": 1, "steps": 3}
SCHEDULES: dict[str, dict[str, Any]] = {
    "layer": {"layer": True},
    "gpipe": {"schedule": "gpipe"},
    "1f1b": {"schedule": "1f1b"},
    "interleaved-1f1b": {"schedule": "interleaved-1f1b", "virtual_stages": 2},
    "zero-bubble": {"schedule": "zero-bubble"},
    "zero-bubble:2": {"schedule": "zero-bubble", "virtual_stages": 2},
    "zbv": {"schedule": "zbv", "virtual_stages": 2},
    "dualpipev": {"schedule": "dualpipev", "virtual_stages": 2},
}


@pytest.fixture(scope="module")
def one_process(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """Return a function that trains in one process, once for each model and training spec."""
    done: dict[str, Metrics] = {}

    def reference(model: ModelSpec, train: dict[str, Any]) -> Metrics:
        key = repr((model, sorted(train.items())))
        if key not in done:
            run_dir = tmp_path_factory.mktemp("one")
            done[key] = train_to_end(plan(text, {}, model=model, train=train), run_dir)
        return done[key]

    return reference


def assert_equal(metrics: Metrics, expected: Metrics, tolerance: float = 1e-10) -> None:
    assert len(metrics) == len(expected) > 0
    for ours, reference in zip(metrics, expected, strict=True):
        assert ours["step"] == reference["step"]
        for key in ("loss", "grad_norm"):
            assert ours[key] == pytest.approx(reference[key], rel=tolerance), (ours["step"], key)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_equals_one_process(
    schedule: str, text: Path, tmp_path: Path, one_process: Reference
) -> None:
    made = plan(text, {"pp": 2}, model=FOUR, spec=SCHEDULES[schedule], train=TRAIN)
    assert_equal(train_to_end(made, tmp_path), one_process(FOUR, TRAIN))


FSDP_TP = {"pp": 2, "fsdp": 2, "tp": 2}
PRODUCTS: dict[str, tuple[dict[str, int], str, dict[str, Any]]] = {
    "pp4": ({"pp": 4}, "1f1b", {}),
    "pp2 tp2": ({"pp": 2, "tp": 2}, "1f1b", {}),
    "pp2 tp2+sp": ({"pp": 2, "tp": 2}, "zero-bubble", {"sp": True}),
    "pp2 fsdp2": ({"pp": 2, "fsdp": 2}, "1f1b", {}),
    "pp2 fsdp2 split": ({"pp": 2, "fsdp": 2}, "zbv", {}),
    "pp2 fsdp2 mixed": ({"pp": 2, "fsdp": 2}, "dualpipev", {}),
    "pp2 zero2": ({"pp": 2, "fsdp": 2}, "zero-bubble", {"zero_stage": 2}),
    "pp2 zero1 split": ({"pp": 2, "fsdp": 2}, "zbv", {"zero_stage": 1}),
    "pp2 dp2": ({"pp": 2, "dp": 2}, "gpipe", {}),
    "pp2 dp2 split": ({"pp": 2, "dp": 2}, "dualpipev", {}),
    "pp2 hsdp2x2 split": ({"pp": 2, "dp": 2, "fsdp": 2}, "zero-bubble", {}),
    "pp2 fsdp2 tp2+sp": (FSDP_TP, "zbv", {"sp": True}),
    "tp outermost": ({"tp": 2, "dp": 2, "pp": 2}, "1f1b", {}),
}


@pytest.mark.parametrize("product", PRODUCTS)
def test_products_with_other_axes_equal_one_process(
    product: str, text: Path, tmp_path: Path, one_process: Reference
) -> None:
    axes, schedule, options = PRODUCTS[product]
    train = TRAIN | {"global_batch": 16}
    made = plan(text, axes, model=FOUR, spec=SCHEDULES[schedule], train=train, **options)
    assert_equal(train_to_end(made, tmp_path), one_process(FOUR, train))


UNEVEN = replace(LLAMA, num_layers=5, vocab_size=2048)
MODELS: dict[str, tuple[ModelSpec, dict[str, int], str, dict[str, Any]]] = {
    "uneven stages": (UNEVEN, {"pp": 4}, "1f1b", {}),
    "gpt tied": (replace(GPT, num_layers=4), {"pp": 2}, "1f1b", {}),
    "gpt tied on one rank": (replace(GPT, num_layers=4), {"pp": 2}, "zbv", {}),
    "gpt tied tp2+sp": (
        replace(GPT, num_layers=4),
        {"pp": 2, "tp": 2},
        "zero-bubble",
        {"sp": True},
    ),
    "gpt tied fsdp2": (replace(GPT, num_layers=4), {"pp": 2, "fsdp": 2}, "1f1b", {}),
    "gpt tied fsdp2 on one rank": (
        replace(GPT, num_layers=4),
        {"pp": 2, "fsdp": 2},
        "dualpipev",
        {},
    ),
    "gpt tied dp2": (replace(GPT, num_layers=4), {"pp": 2, "dp": 2}, "zero-bubble", {}),
}


@pytest.mark.parametrize("case", MODELS)
def test_models_equal_one_process(
    case: str, text: Path, tmp_path: Path, one_process: Reference
) -> None:
    model, axes, schedule, options = MODELS[case]
    made = plan(text, axes, model=model, spec=SCHEDULES[schedule], train=TRAIN, **options)
    assert_equal(train_to_end(made, tmp_path), one_process(model, TRAIN))


@pytest.mark.parametrize("schedule", ["1f1b", "zero-bubble", "dualpipev"])
@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputation_changes_nothing(
    recompute: str, schedule: str, text: Path, tmp_path: Path, one_process: Reference
) -> None:
    train = TRAIN | {"recompute": recompute}
    axes = {"pp": 2, "tp": 2} if schedule == "zero-bubble" else {"pp": 2, "fsdp": 2}
    made = plan(text, axes, model=FOUR, sp="tp" in axes, spec=SCHEDULES[schedule], train=train)
    assert_equal(train_to_end(made, tmp_path), one_process(FOUR, TRAIN))


@pytest.mark.parametrize("schedule", ["interleaved-1f1b", "zbv"])
def test_validation_runs_through_the_stages(
    schedule: str, text: Path, tmp_path: Path, one_process: Reference
) -> None:
    train = TRAIN | {"validate_every": 2, "validate_batches": 2}
    made = plan(text, {"pp": 2, "fsdp": 2}, model=FOUR, spec=SCHEDULES[schedule], train=train)
    metrics, expected = train_to_end(made, tmp_path), one_process(FOUR, train)
    assert_equal(metrics, expected)
    losses = [[line["validation_loss"] for line in lines] for lines in (metrics, expected)]
    assert losses[0][1:] == pytest.approx(losses[1][1:], rel=1e-10)


def test_layouts_with_and_without_stages_continue_one_curve(text: Path, tmp_path: Path) -> None:
    """Resumed from the checkpoint of another layout each time, tied embedding included."""
    model = replace(GPT, num_layers=4)
    train = {"micro_batch": 1, "steps": 6}
    expected = train_to_end(plan(text, {}, model=model, train=train), tmp_path / "one")
    layouts: list[tuple[dict[str, int], str, bool]] = [
        ({"pp": 2}, "1f1b", False),
        ({"fsdp": 2}, "1f1b", False),
        ({"pp": 2, "tp": 2}, "zbv", True),
        ({"pp": 4}, "gpipe", False),
    ]
    for index, (axes, schedule, sp) in enumerate(layouts):
        run_dir = tmp_path / str(index)
        if index:
            name = f"checkpoints/step-{index:08d}"
            shutil.copytree(tmp_path / str(index - 1) / name, run_dir / name)
        made = plan(
            text,
            axes,
            model=model,
            sp=sp,
            spec=SCHEDULES[schedule],
            train=train,
            checkpoint={"every": 1},
        )
        assert_equal(train_to_end(made, run_dir), expected[index:])


@pytest.mark.parametrize("schedule", ["1f1b", "dualpipev"])
def test_bfloat16_stays_close_to_one_process(
    schedule: str, text: Path, tmp_path: Path, one_process: Reference
) -> None:
    """bfloat16 keeps 8 bits (0.4%): norms to 2%, losses to 0.5%."""
    train = TRAIN | {"precision": "bf16"}
    made = plan(text, {"pp": 2, "fsdp": 2}, model=FOUR, spec=SCHEDULES[schedule], train=train)
    for ours, reference in zip(train_to_end(made, tmp_path), one_process(FOUR, train), strict=True):
        assert ours["loss"] == pytest.approx(reference["loss"], rel=0.005)
        assert ours["grad_norm"] == pytest.approx(reference["grad_norm"], rel=0.02)


def test_a_schedule_of_the_users_own(text: Path, tmp_path: Path, one_process: Reference) -> None:
    """GPipe with half of each backward put off, over two ranks and two micro-batches."""
    rows = (
        ("0F0", "0F1", "0I1", "0I0", "0W0", "0W1"),
        ("1F0", "1F1", "1B1", "1I0", "1W0"),
    )
    train = TRAIN | {"micro_batch": 4}
    made = plan(text, {"pp": 2}, model=FOUR, spec={"schedule_table": rows}, train=train)
    assert_equal(train_to_end(made, tmp_path), one_process(FOUR, train))


def test_dropout_differs_between_stages_and_repeats_with_the_seed(
    text: Path, tmp_path: Path
) -> None:
    model = replace(FOUR, dropout=0.1)
    made = plan(text, {"pp": 2}, model=model, spec=SCHEDULES["zbv"], train=TRAIN)
    first = train_to_end(made, tmp_path / "first")
    second = train_to_end(made, tmp_path / "second")
    assert_equal(first, second, 0.0)
