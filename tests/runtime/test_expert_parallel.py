"""Experts on several ranks train as one process does: loss and gradient norm, step by step.

The micro-batch of the one process is that of all ranks together (micro_batch x dp x fsdp), because
the balance losses depend on which tokens are counted together. `test_moe` gives the smallest
routing margin of each model: no choice hangs on rounding.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.runtime.exchanges import count_exchanges, count_waits
from tests.runtime.harness import run_ranks, train_to_end
from tests.runtime.moe_models import MODELS, moe_model
from tests.runtime.plans import plan

from parctl.planner.plan import Plan
from parctl.recipes.spec import ModelSpec
from parctl.runtime.parallel import shared_memory
from parctl.runtime.parallel.mesh import build_mesh, choose_device, join_world
from parctl.runtime.parallel.parallelize import parallelize

Metrics = list[dict[str, Any]]
Reference = Callable[..., Metrics]
MIXTRAL, SWITCH, DEEPSEEK = MODELS["mixtral"], MODELS["switch"], MODELS["deepseek"]
CAPACITY = MODELS["capacity of two choices"]


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
    assert len(metrics) == len(expected) == 4
    for ours, reference in zip(metrics, expected, strict=True):
        for key in ("loss", "grad_norm"):
            assert ours[key] == pytest.approx(reference[key], rel=tolerance), (ours["step"], key)
        for key in ("expert_load", "expert_dropped"):
            assert ours[key] == pytest.approx(reference[key], rel=1e-6), (ours["step"], key)


SP = {"sp": True}
FORMS: dict[str, tuple[ModelSpec, dict[str, int], dict[str, Any], dict[str, Any]]] = {
    # without ep: experts are split as the MLP is
    "fsdp2": (MIXTRAL, {"fsdp": 2}, {}, {}),
    "fsdp2 x tp2": (DEEPSEEK, {"fsdp": 2, "tp": 2}, {}, {}),
    "tp2+sp": (DEEPSEEK, {"tp": 2}, {}, SP),
    "capacity tp2+sp": (CAPACITY, {"tp": 2}, {}, SP),
    # ep on the data axes
    "ep2 of dp2": (MIXTRAL, {"dp": 2}, {"ep": 2}, {}),
    "ep2 of fsdp2": (DEEPSEEK, {"fsdp": 2}, {"ep": 2}, {}),
    "zero2 ep2": (MIXTRAL, {"fsdp": 2}, {"ep": 2}, {"zero_stage": 2}),
    "ep4": (MIXTRAL, {"fsdp": 4}, {"ep": 4}, {}),
    "ep2 x edp2, shards": (MIXTRAL, {"fsdp": 4}, {"ep": 2}, {}),
    "ep2 x edp2, replicas": (DEEPSEEK, {"dp": 4}, {"ep": 2}, {}),
    "ep2 of hsdp2x2": (MIXTRAL, {"dp": 2, "fsdp": 2}, {"ep": 2}, {}),
    "ep4 of hsdp2x2": (DEEPSEEK, {"dp": 2, "fsdp": 2}, {"ep": 4}, {}),
    "ep2 of hsdp2x4": (MIXTRAL, {"dp": 2, "fsdp": 4}, {"ep": 2}, {}),
    "capacity ep2": (SWITCH, {"fsdp": 2}, {"ep": 2}, {}),
    # every tp rank has its experts whole
    "dp2 x tp2 x ep2": (MIXTRAL, {"dp": 2, "tp": 2}, {"ep": 2}, {}),
    "dp2 x tp2+sp x ep2": (DEEPSEEK, {"dp": 2, "tp": 2}, {"ep": 2}, SP),
    "fsdp2 x tp2 x ep2": (DEEPSEEK, {"fsdp": 2, "tp": 2}, {"ep": 2}, {}),
    "capacity fsdp2 x tp2+sp x ep2": (CAPACITY, {"fsdp": 2, "tp": 2}, {"ep": 2}, SP),
    # experts split over tp
    "ep2 x etp2": (DEEPSEEK, {"fsdp": 2, "tp": 2}, {"ep": 2, "etp": 2}, {}),
    "ep2 x etp2, sp": (MIXTRAL, {"dp": 2, "tp": 2}, {"ep": 2, "etp": 2}, SP),
    "ep2 x etp2 x edp2": (MIXTRAL, {"fsdp": 4, "tp": 2}, {"ep": 2, "etp": 2}, SP),
    # ep takes tp ranks too
    "ep2 of tp2": (MIXTRAL, {"tp": 2}, {"ep": 2}, {}),
    "ep4 of fsdp2 x tp2": (DEEPSEEK, {"fsdp": 2, "tp": 2}, {"ep": 4}, {}),
    "ep4 of fsdp2 x tp2+sp": (MIXTRAL, {"fsdp": 2, "tp": 2}, {"ep": 4}, SP),
    "ep2 x etp2 of tp4": (MIXTRAL, {"tp": 4}, {"ep": 2, "etp": 2}, {}),
    "ep2 x etp2 of fsdp2 x tp4+sp": (MIXTRAL, {"fsdp": 2, "tp": 4}, {"ep": 2, "etp": 2}, SP),
    # with context and pipeline parallelism
    "ep2 of cp2": (MIXTRAL, {"cp": 2}, {"ep": 2}, {}),
    "capacity cp2 x tp2+sp x ep2": (CAPACITY, {"cp": 2, "tp": 2}, {"ep": 2}, SP),
    "capacity fsdp2 x ulysses2 x ep4": (
        SWITCH,
        {"fsdp": 2, "cp": 2},
        {"ep": 4, "cp_kind": "ulysses"},
        {},
    ),
    "pp2 x fsdp2 x ep2": (DEEPSEEK, {"pp": 2, "fsdp": 2}, {"ep": 2}, {}),
    "5d": (SWITCH, {"pp": 2, "dp": 2, "tp": 2}, {"ep": 2}, SP),
    # orders of ranks
    "permuted": (MIXTRAL, {"fsdp": 2, "tp": 2}, {"ep": 2}, {"ranks": (3, 1, 0, 2)}),
    "tp outermost": (MIXTRAL, {"tp": 2, "fsdp": 2}, {"ep": 4}, SP),
    "fsdp outside dp": (MIXTRAL, {"fsdp": 2, "dp": 2}, {"ep": 2}, {}),
}


@pytest.mark.parametrize("form", FORMS)
def test_experts_of_every_form_equal_one_process(
    form: str, text: Path, tmp_path: Path, one_process: Reference
) -> None:
    model, axes, expert, options = FORMS[form]
    data = axes.get("dp", 1) * axes.get("fsdp", 1)
    made = plan(text, axes, model=model, spec=expert, train={"micro_batch": 8 // data}, **options)
    assert_equal(train_to_end(made, tmp_path), one_process(model, {"micro_batch": 8}))


@pytest.mark.parametrize("recompute", ["selective", "full"])
@pytest.mark.parametrize("axes", [{"fsdp": 2, "tp": 2}, {"dp": 2}], ids=str)
def test_recomputation_and_accumulation_change_nothing(
    recompute: str, axes: dict[str, int], text: Path, tmp_path: Path, one_process: Reference
) -> None:
    """Two micro-batches a step: those of both ranks together are the ones of one process."""
    train = {"recompute": recompute, "micro_batch": 2}
    made = plan(text, axes, model=DEEPSEEK, spec={"ep": 2}, sp="tp" in axes, train=train)
    assert_equal(train_to_end(made, tmp_path), one_process(DEEPSEEK, {"micro_batch": 4}))


@pytest.mark.parametrize("axes", [{"fsdp": 2}, {"dp": 2, "tp": 2}, {"fsdp": 4}], ids=str)
def test_float32_stays_within_rounding(
    axes: dict[str, int], text: Path, tmp_path: Path, one_process: Reference
) -> None:
    """Grouped matmuls, which float64 does not use."""
    train = {"precision": "fp32", "micro_batch": 8 // max(axes.get("fsdp", 1), axes.get("dp", 1))}
    made = plan(text, axes, model=MIXTRAL, spec={"ep": 2}, train=train)
    expected = one_process(MIXTRAL, {"precision": "fp32", "micro_batch": 8})
    assert_equal(train_to_end(made, tmp_path), expected, 1e-5)


@pytest.mark.parametrize("axes", [{"fsdp": 2}, {"tp": 2}], ids=str)
def test_bfloat16_stays_close(
    axes: dict[str, int], text: Path, tmp_path: Path, one_process: Reference
) -> None:
    """Routing may change where two scores are nearly equal: loss to 1%, norm to 5%."""
    train = {"precision": "bf16", "micro_batch": 8 // axes.get("fsdp", 1)}
    metrics = train_to_end(plan(text, axes, model=MIXTRAL, spec={"ep": 2}, train=train), tmp_path)
    precise = one_process(MIXTRAL, {"micro_batch": 8})
    for ours, reference in zip(metrics, precise, strict=True):
        assert ours["loss"] == pytest.approx(reference["loss"], rel=0.01)
        assert ours["grad_norm"] == pytest.approx(reference["grad_norm"], rel=0.05)


def test_balance_losses_reach_the_gradient(one_process: Reference) -> None:
    """Else parity would hold for losses that both leave out."""
    with_losses = one_process(MIXTRAL, {"micro_batch": 8})
    without = one_process(moe_model(aux_loss=0.0, z_loss=0.0), {"micro_batch": 8})
    assert with_losses[0]["loss"] == without[0]["loss"]
    assert with_losses[0]["grad_norm"] != pytest.approx(without[0]["grad_norm"], rel=1e-6)


def test_a_checkpoint_with_experts_apart_continues_on_another_layout(
    text: Path, tmp_path: Path, one_process: Reference
) -> None:
    """Weights, moments and the routers' biases: ep2 for two steps, then fsdp2 x tp2."""
    saves = {"dir": str(tmp_path / "saved"), "every": 2, "at_end": True}
    train = {"micro_batch": 4, "steps": 4}
    first = plan(text, {"fsdp": 2}, model=DEEPSEEK, spec={"ep": 2}, train=train, checkpoint=saves)
    train_to_end(first, tmp_path / "first")
    newest = tmp_path / "saved" / "step-00000004"
    (newest / "COMPLETE").unlink()
    second = plan(
        text, {"fsdp": 2, "tp": 2}, model=DEEPSEEK, sp=True, train=train, checkpoint=saves
    )
    metrics = train_to_end(second, tmp_path / "second")
    assert [line["step"] for line in metrics] == [3, 4]
    for ours, reference in zip(metrics, one_process(DEEPSEEK, {"micro_batch": 8})[2:], strict=True):
        assert ours["loss"] == pytest.approx(reference["loss"], rel=1e-10)
        assert ours["grad_norm"] == pytest.approx(reference["grad_norm"], rel=1e-10)


@pytest.mark.parametrize("axes", [{"fsdp": 2}, {"dp": 2, "tp": 2}], ids=str)
def test_another_placement_computes_the_same_and_its_checkpoints_are_the_same(
    axes: dict[str, int], text: Path, tmp_path: Path, one_process: Reference
) -> None:
    """Two steps with experts dealt out round-robin, then two with experts by load."""
    saves = {"dir": str(tmp_path / "saved"), "every": 2, "at_end": True}
    train = {"micro_batch": 4}
    robin = {"ep": 2, "expert_placement": "round-robin"}
    made = plan(text, axes, model=DEEPSEEK, spec=robin, train=train, checkpoint=saves)
    expected = one_process(DEEPSEEK, {"micro_batch": 8})
    assert_equal(train_to_end(made, tmp_path / "first"), expected)
    load = json.loads((tmp_path / "first" / "expert_load.json").read_text())
    assert [len(row) for row in load] == [0, 8]
    assert sum(load[1]) == 4 * 8 * 16 * 3  # steps, sequences, tokens, choices

    shutil.rmtree(tmp_path / "saved" / "step-00000004")  # the one after two steps is left
    by_load = {
        "ep": 2,
        "expert_placement": "load-balanced",
        "expert_load": tuple(map(tuple, load)),
    }
    other = plan(text, {"fsdp": 2}, model=DEEPSEEK, spec=by_load, train=train, checkpoint=saves)
    metrics = train_to_end(other, tmp_path / "other")
    assert [line["step"] for line in metrics] == [3, 4]
    for ours, reference in zip(metrics, expected[2:], strict=True):
        assert ours["loss"] == pytest.approx(reference["loss"], rel=1e-10)
        assert ours["grad_norm"] == pytest.approx(reference["grad_norm"], rel=1e-10)


LAYERS = 2
UNITS = LAYERS + 2  # embedding, layers, head


@pytest.mark.parametrize(
    ("axes", "expert", "expected"),
    [
        # a layer: all-to-all of counts, rows there, rows back, and both back in the backward pass;
        # the load is added up once; replicas that no expert has a part in
        ({"dp": 2}, {"ep": 2}, {"A2A": 5 * LAYERS, "AR": LAYERS + UNITS}),
        # the experts' gradients of both replicas in one all-reduce after the step
        ({"dp": 4}, {"ep": 2}, {"A2A": 5 * LAYERS, "AR": LAYERS + UNITS + 1}),
        # experts are gathered and scattered apart, because other ranks share in them
        (
            {"fsdp": 4},
            {"ep": 2},
            {
                "A2A": 5 * LAYERS,
                "AR": LAYERS,
                "AG": 4 * LAYERS + 2,
                "RS": 2 * LAYERS + 2,
            },
        ),
    ],
    ids=str,
)
def test_exchanges_of_a_step_are_the_textbooks(
    axes: dict[str, int],
    expert: dict[str, int],
    expected: dict[str, int],
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # in shared memory replicas make one all-reduce of all their units
    monkeypatch.setenv(shared_memory.SWITCH, "0")
    (size,) = axes.values()
    train = {"micro_batch": 8 // size}  # one micro-batch
    made = plan(text, axes, model=MIXTRAL, spec=expert, train=train)
    assert run_ranks(count_exchanges, size, tmp_path, made, tmp_path) == [expected] * size


@pytest.mark.parametrize("model", [MIXTRAL, CAPACITY], ids=["dropless", "capacity"])
def test_the_host_waits_once_per_layer_for_how_many_rows_go_where(
    model: ModelSpec, text: Path, tmp_path: Path
) -> None:
    train = {"micro_batch": 4, "precision": "fp32"}  # one micro-batch
    made = plan(text, {"dp": 2}, model=model, spec={"ep": 2}, train=train)
    assert run_ranks(count_waits, 2, tmp_path, made, tmp_path) == [LAYERS] * 2


def held(made: Plan) -> dict[str, list[int]]:
    """Return the local shapes of the experts' parameters in the first sparse layer."""
    join_world(made.layout, choose_device())
    mesh = build_mesh(made.layout, choose_device(), wrap_alone=False)
    recipe = made.recipe
    assert recipe.model and recipe.train
    model = parallelize(recipe.model, recipe.parallelism, recipe.train, mesh, made.stages)
    shapes = {
        name.rpartition(".")[2]: list(getattr(value, "_local_tensor", value).shape)
        for name, value in model.parameters().items()
        if ".0.moe.experts." in name
    }
    torch.distributed.destroy_process_group()
    return shapes


@pytest.mark.parametrize(
    ("axes", "expert", "up"),
    [
        ({"fsdp": 4}, {"ep": 2}, [2, 24, 16]),
        ({"fsdp": 2, "tp": 2}, {"ep": 2}, [2, 24, 32]),
        ({"fsdp": 2, "tp": 2}, {"ep": 2, "etp": 2}, [2, 12, 32]),
        ({"fsdp": 2, "tp": 2}, {}, [4, 12, 16]),
        ({"dp": 2, "fsdp": 2}, {"ep": 2}, [2, 24, 32]),
    ],
    ids=str,
)
def test_a_rank_holds_its_part_of_its_experts_only(
    axes: dict[str, int], expert: dict[str, int], up: list[int], text: Path, tmp_path: Path
) -> None:
    """Of `w_up` [4 experts, 24, 32]: experts over ep, 24 over etp, 32 over what shards."""
    made = plan(text, axes, model=replace(MIXTRAL), spec=expert)
    shapes = run_ranks(held, 4, tmp_path, made)
    assert all(shape["w_up"] == up for shape in shapes)
    assert all(shape["w_down"] == [up[0], up[2], up[1]] for shape in shapes)
