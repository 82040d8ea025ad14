"""A checkpoint of any layout continues on any other: the same curve, the same bits on the same one.

The whole matrix is slow; a chain through all layouts always runs.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.harness import train_to_end
from tests.runtime.moe_models import MODELS
from tests.runtime.plans import LLAMA, plan

from parctl.recipes.spec import ModelSpec

Curve = dict[int, tuple[float, float]]
Options = dict[str, Any]
LAYOUTS: dict[str, tuple[dict[str, int], Options]] = {
    "one": ({}, {}),
    "fsdp2": ({"fsdp": 2}, {}),
    "dp2": ({"dp": 2}, {}),
    "zero1 x tp2+sp": ({"fsdp": 2, "tp": 2}, {"sp": True, "zero_stage": 1}),
    "pp2": ({"pp": 2}, {}),
    "pp2 x fsdp2": ({"pp": 2, "fsdp": 2}, {}),
}
MOE_LAYOUTS: dict[str, tuple[dict[str, int], Options]] = {
    "one": ({}, {}),
    "fsdp2 with ep2": ({"fsdp": 2}, {"spec": {"ep": 2}}),
    "pp2 x dp2 with ep2": ({"pp": 2, "dp": 2}, {"spec": {"ep": 2}}),
    "dp2 x tp2 with ep2": ({"dp": 2, "tp": 2}, {"spec": {"ep": 2}}),
}


def curve(metrics: list[dict[str, Any]]) -> Curve:
    return {record["step"]: (record["loss"], record["grad_norm"]) for record in metrics}


def train(
    text: Path,
    run_dir: Path,
    layout: tuple[dict[str, int], Options],
    *,
    model: ModelSpec = LLAMA,
    every: int,
    steps: int,
    source: tuple[Path, int] | None = None,
) -> Curve:
    """Train to `steps`, from the checkpoint of a run's step when there is a `source`."""
    axes, options = layout
    if source is not None:
        run, step = source
        name = f"checkpoints/step-{step:08d}"
        shutil.copytree(run / name, run_dir / name)
    # routers are balanced per micro-batch, so all layouts take the same four sequences at once
    micro_batch = 4 // (axes.get("dp", 1) * axes.get("fsdp", 1))
    made = plan(
        text,
        axes,
        model=model,
        train={"steps": steps, "micro_batch": micro_batch},
        checkpoint={"every": every},
        **options,
    )
    return curve(train_to_end(made, run_dir))


def chain(
    text: Path, tmp_path: Path, model: ModelSpec, layouts: Mapping[str, Any], first: str
) -> None:
    """Every layout makes one more step of the same training; the last comes back to the first."""
    names = [*layouts, first]
    expected = train(text, tmp_path / "whole", layouts[first], model=model, every=0, steps=7)
    for index, name in enumerate(names):
        run_dir = tmp_path / str(index)
        source = (tmp_path / str(index - 1), index) if index else None
        got = train(text, run_dir, layouts[name], model=model, every=1, steps=7, source=source)
        for step, numbers in got.items():
            assert numbers == pytest.approx(expected[step], rel=1e-10), (name, step)


def test_dense_layouts_in_turn_continue_one_curve(text: Path, tmp_path: Path) -> None:
    chain(text, tmp_path, LLAMA, LAYOUTS, "one")


def test_moe_layouts_in_turn_continue_one_curve(text: Path, tmp_path: Path) -> None:
    """The balance bias of the routers, which is no parameter, moves along."""
    chain(text, tmp_path, MODELS["deepseek"], MOE_LAYOUTS, "one")


@pytest.fixture(scope="module")
def saved(
    text: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, Curve]]:
    """Return a function that trains on a layout, once, and saves step 2 of 4."""
    done: dict[str, tuple[Path, Curve]] = {}

    def train_once(name: str) -> tuple[Path, Curve]:
        if name not in done:
            run_dir = tmp_path_factory.mktemp("saved")
            done[name] = run_dir, train(text, run_dir, LAYOUTS[name], every=2, steps=4)
        return done[name]

    return train_once


@pytest.mark.slow
@pytest.mark.parametrize("target", LAYOUTS)
@pytest.mark.parametrize("source", LAYOUTS)
def test_every_layout_continues_every_other(
    source: str,
    target: str,
    text: Path,
    tmp_path: Path,
    saved: Callable[[str], tuple[Path, Curve]],
) -> None:
    run_dir, _ = saved(source)
    _, undisturbed = saved(target)
    got = train(text, tmp_path, LAYOUTS[target], every=0, steps=4, source=(run_dir, 2))
    assert sorted(got) == [3, 4]
    for step, numbers in got.items():
        if source == target:
            assert numbers == undisturbed[step]
        assert numbers == pytest.approx(undisturbed[step], rel=1e-10)
