"""Training over several nodes gives the losses of the same recipe on this machine."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.launcher.ray.cluster import RayCluster
from tests.launcher.ray.outcomes import Outcomes
from tests.launcher.ray.runs import SMALL_NODES, ended, launch, local_losses, until

from parctl.launcher.backend import State
from parctl.launcher.ray.backend import RayBackend
from parctl.launcher.ray.jobs import read_file
from parctl.launcher.ray.run_files import log_name

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


def test_training_goes_on_with_fewer_nodes_from_the_newest_checkpoint(
    cluster: RayCluster, backend: RayBackend, tmp_path: Path, outcomes: Outcomes
) -> None:
    launch(
        "tiny-llama",
        *SHORT,
        "parallelism=TP2+SP+FSDP2",
        "train.steps=40",
        f"checkpoint.dir={tmp_path}/saved",
        "checkpoint.every=5",
        "launch.retries=1",
        "launch.ray.min_nodes=1",
        "launch.ray.rejoin_s=1",
        SMALL_NODES,
        run_id="fewer-1",
    )
    until(lambda: list(tmp_path.glob("saved/step-*")))
    outcomes.begin()
    cluster.kill_raylet("pair-1")
    try:
        status = ended(backend, "fewer-1")
        job = backend._find("fewer-1")
    finally:
        cluster.forget("pair-1")
        cluster.add("pair-1", num_gpus=2, num_cpus=4)

    assert status.state is State.SUCCEEDED, status.verdict
    assert (status.step, status.restarts) == (40, 1)
    assert [(rank.rank, rank.node) for rank in status.ranks] == [(0, "pair-0"), (1, "pair-0")]
    rows = backend.metrics("fewer-1")
    assert [row["step"] for row in rows] == list(range(1, 41))  # no step is missing
    again = [row["step"] for row in rows if row["attempt"] == 2]
    lines = list(backend.logs("fewer-1", rank=None, since=None, tail=None, follow=False))
    # it goes on behind what was saved last: a checkpoint of its own, or what ranks saved when the
    # end of their node told them to leave
    saved = f"saved {tmp_path}/saved/step-{again[0] - 1:08d}"
    assert saved in [line.text for line in lines if line.rank == 0]
    said = [line.text for line in lines if line.rank is None]
    fewer = "going on with fsdp 1 in place of 2: 1 nodes are there, 2 were planned"
    assert fewer in said
    name = log_name("fewer-1", "driver", "metrics.jsonl")
    told = read_file(backend._dashboard, str(job.driver_node), name)
    reported = [json.loads(row) for row in (told or "").splitlines()]
    done = max(row["step"] for row in reported if row["attempt"] == 1)
    outcomes.note(
        "raylet: kill -9, the node does not come back",
        "Succeeded",
        fewer,
        run_id="fewer-1",
        backend=backend,
        lost=f"{max(0, done - again[0] + 1)}, none of them saved",
    )
