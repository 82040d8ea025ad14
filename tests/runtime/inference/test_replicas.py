"""Replicas whose experts are dealt out over them step together, whatever each has to do."""

from dataclasses import replace
from pathlib import Path

import torch
from tests.runtime.harness import run_ranks
from tests.runtime.inference.forms import EXPERT_FORMS, greedy, serve
from tests.runtime.plans import LLAMA
from tests.runtime.test_huggingface import MOE

from parctl.runtime.inference.assemble import assemble
from parctl.runtime.inference.config import EngineConfig
from parctl.runtime.inference.engine import Engine
from parctl.runtime.inference.sampling import BatchSampler
from parctl.runtime.parallel.mesh import RankMesh, build_mesh, join_world

MODEL = replace(LLAMA, family="moe", moe=MOE)
FORM = EXPERT_FORMS["dp2 x ep2"]
REQUESTS = greedy([(1, 2, 3), (9, 8, 7, 6)], [15, 9])


def make(mesh: RankMesh | None) -> Engine:
    config = EngineConfig(num_blocks=32, block_size=4)
    return assemble(
        MODEL,
        config,
        BatchSampler(),
        source=7,
        dtype=torch.float64,
        mesh=mesh,
        parallelism=FORM.parallelism,
    )


def alone() -> list[list[int]]:
    return list(serve(make(None), REQUESTS).tokens.values())


def together(early: bool) -> tuple[list[list[int]], int]:
    """The first replica has all requests; the second none, or some and leaves `early`."""
    join_world(FORM.layout, torch.device("cpu"))
    mesh = build_mesh(FORM.layout, torch.device("cpu"), wrap_alone=False)
    engine = make(mesh)
    if mesh.data_rank == 0:
        found = list(serve(engine, REQUESTS).tokens.values())
    else:
        found = []
        if early:
            engine.add(REQUESTS[0])
            engine.step()
        else:
            serve(engine, [])
    engine.close()
    return found, engine.stats().steps


def test_a_replica_without_requests_steps_along(tmp_path: Path) -> None:
    (expected,) = run_ranks(alone, 1, tmp_path)
    (busy, steps), (idle, idle_steps) = run_ranks(together, 2, tmp_path, False)
    assert busy == expected and idle == []
    assert steps == idle_steps


def test_a_replica_that_is_told_to_leave_lets_the_others_finish(tmp_path: Path) -> None:
    (expected,) = run_ranks(alone, 1, tmp_path)
    (busy, steps), (_, left_steps) = run_ranks(together, 2, tmp_path, True)
    assert busy == expected
    assert steps == left_steps
