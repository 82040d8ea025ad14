"""Training over several nodes gives the losses of the same recipe on this machine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.launcher.ray.runs import SMALL_NODES, ended, launch, local_losses

from parctl.launcher.backend import State
from parctl.launcher.ray.backend import RayBackend

SHORT = (
    "train.steps=3",
    "train.log_every=1",
    "train.validate_every=0",
    "train.seq_len=32",
    "train.global_batch=8",
    "train.micro_batch=2",
    "checkpoint.every=0",
)


def losses(rows: Any) -> Mapping[int, float]:
    return {row["step"]: row["loss"] for row in rows}


@pytest.mark.parametrize(
    ("recipe", "form", "nodes", "num_nodes"),
    [
        ("tiny-llama", "TP2+SP+FSDP2", SMALL_NODES, 2),
        ("tiny-gpt", "DP2+TP2+PP2", "placement.require=[pair-0,pair-1]", 3),
        ("tiny-moe", "DP2+TP2+EP2", SMALL_NODES, 2),
    ],
)
def test_the_losses_are_those_of_a_local_run(
    backend: RayBackend, tmp_path: Path, recipe: str, form: str, nodes: str, num_nodes: int
) -> None:
    changes = (*SHORT, f"parallelism={form}", f"checkpoint.dir={tmp_path}/saved")
    plan = launch(recipe, *changes, nodes, run_id=recipe)
    assert plan.layout.num_nodes == num_nodes

    status = ended(backend, recipe)
    assert status.state is State.SUCCEEDED, status.verdict
    assert (status.step, status.steps, status.restarts) == (3, 3, 0)
    assert {rank.state for rank in status.ranks} == {"exited 0"}
    # no sum is ordered otherwise on two nodes: gloo's rings follow the ranks
    assert losses(backend.metrics(recipe)) == pytest.approx(
        local_losses(recipe, *changes[:-1]), rel=1e-6
    )
