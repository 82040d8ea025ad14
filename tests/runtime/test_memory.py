"""What is kept elsewhere, in parts, or not at all changes no number, and frees what it should."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.runtime.harness import run_ranks, train_to_end
from tests.runtime.plans import OPTIMIZER, plan
from torch import nn

from parctl.runtime.optimizer import make_optimizer

Metrics = list[dict[str, Any]]

FORMS: dict[str, tuple[dict[str, int], dict[str, Any]]] = {
    "partitioned x tp2": ({"tp": 2}, {"recompute": "partitioned"}),
    "partitioned x fsdp2 x tp2": ({"fsdp": 2, "tp": 2}, {"recompute": "partitioned"}),
    "partitioned, on the host": (
        {"tp": 2},
        {"recompute": "partitioned", "offload_activations": True},
    ),
    "full, on the host": ({"dp": 2}, {"recompute": "full", "offload_activations": True}),
    "layers by turns": ({"fsdp": 2}, {"recompute_layers": ("selective", "full")}),
    "one layer of two": ({"tp": 2}, {"recompute_layers": ("none", "partitioned")}),
    "optimizer on the host": ({"fsdp": 2, "tp": 2}, {"offload_optimizer": True}),
}


@pytest.fixture(scope="module")
def one_process(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Metrics:
    return train_to_end(plan(text, {}), tmp_path_factory.mktemp("one"))


@pytest.mark.parametrize("form", FORMS)
def test_the_form_equals_one_process(
    form: str, text: Path, tmp_path: Path, one_process: Metrics
) -> None:
    axes, train = FORMS[form]
    metrics = train_to_end(plan(text, axes, train=train), tmp_path)
    for ours, reference in zip(metrics, one_process, strict=True):
        for key in ("loss", "grad_norm"):
            assert ours[key] == pytest.approx(reference[key], rel=1e-10), (ours["step"], key)


def host_and_device() -> tuple[Any, ...]:
    """Two steps of both optimizers on the same numbers."""
    results = []
    for on_host in (False, True):
        matrix, norm = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
        parameters = {"m.weight": matrix, "norm.weight": norm}
        optimizer = make_optimizer(parameters, OPTIMIZER, on_host=on_host)
        for _ in range(2):
            matrix.grad, norm.grad = torch.full((2, 2), 0.5), torch.full((2,), -0.5)
            optimizer.step()
        results.append((matrix.tolist(), norm.tolist()))
    return tuple(results)


def test_the_hosts_update_is_the_devices(tmp_path: Path) -> None:
    (((matrix, norm), on_host),) = run_ranks(host_and_device, 1, tmp_path)
    assert on_host[0] == [pytest.approx(row, rel=1e-6) for row in matrix]
    assert on_host[1] == pytest.approx(norm, rel=1e-6)
    # two steps of lr 0.01 against the gradient, and decay of 0.1 lr of the matrix
    assert matrix[0][0] == pytest.approx((1 * 0.999 - 0.01) * 0.999 - 0.01, rel=1e-6)
    assert norm[0] == pytest.approx(1.02, rel=1e-6)


def skipped_step() -> tuple[float, float, float]:
    weight = nn.Parameter(torch.ones(4))
    optimizer = make_optimizer({"norm.weight": weight}, OPTIMIZER)
    weight.grad = torch.full((4,), float("nan"))
    optimizer.update(skip=torch.tensor(1.0))
    kept = weight.tolist()[0]
    weight.grad = torch.full((4,), 0.5)
    optimizer.update(skip=torch.tensor(0.0))
    return kept, weight.tolist()[0], float(optimizer.state[weight]["step"])


def test_a_step_that_diverged_changes_nothing(tmp_path: Path) -> None:
    (result,) = run_ranks(skipped_step, 1, tmp_path)
    assert result == (1.0, pytest.approx(0.99), 1.0)
