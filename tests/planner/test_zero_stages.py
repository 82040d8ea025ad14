"""Bytes of a rank in every stage of ZeRO, measured in the runtime and by the closed forms.

With P, G the bytes of all parameters and gradients and N = 4 ranks; between two micro-batches of a
step, besides the optimizer's state and its share of the weights, a rank holds

    stage 1   P + G       stage 2   P + G/N       stage 3   G/N

P is in the compute type. Until the next reduce-scatter the input of the last one stays: the whole
gradient of the embedding, in the type that it crosses in.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.planner.live_bytes import LiveBytes, fake_world
from tests.runtime.harness import run_ranks
from tests.runtime.plans import plan

from parctl.planner.plan import Plan
from parctl.runtime.data.batches import MicroBatch
from parctl.runtime.model.linear import local
from parctl.runtime.optimizer import MOMENTS, make_optimizer
from parctl.runtime.parallel import data_parallel
from parctl.runtime.parallel.mesh import build_mesh
from parctl.runtime.parallel.parallelize import parallelize
from parctl.runtime.parallel.passes import loss_sum, run_stage

RANKS = 4
NUMBERS = 2 * 256 * 32 + 5 * 32 + 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)  # parameters
LAST_UNIT = 256 * 32


def state_and_held(made: Plan) -> tuple[int, int]:
    """Bytes of weights and moments at rest, and of what is alive after a first micro-batch."""
    recipe = made.recipe
    assert recipe.model and recipe.train
    with fake_world(RANKS):
        bf16 = recipe.train.precision == "bf16"
        mesh = build_mesh(made.layout, torch.device("cpu"), wrap_alone=bf16)
        model = parallelize(recipe.model, recipe.parallelism, recipe.train, mesh, made.stages)
        parameters = model.parameters()
        optimizer = make_optimizer(parameters, recipe.train.optimizer)
        state = sum(
            local(tensor).nbytes
            for parameter in parameters.values()
            for tensor in (parameter, *(optimizer.state[parameter][name] for name in MOMENTS))
        )
        (stage,) = model.stages
        tokens = torch.zeros(1, recipe.train.seq_len, dtype=torch.int64)
        batch = MicroBatch(tokens=tokens, targets=tokens)
        with LiveBytes(parameters.values()) as live:
            data_parallel.set_gradient_exchange(stage, mesh, last=False)
            loss = loss_sum(stage, run_stage(stage, tokens, batch), batch, mesh)
            loss.backward()  # type: ignore[no-untyped-call]
            del loss
        return state, live.now


@pytest.mark.parametrize(
    ("zero_stage", "precision", "held"),
    [
        (1, "fp32", 4 * NUMBERS + 4 * NUMBERS),
        (2, "fp32", 4 * NUMBERS + 4 * NUMBERS // RANKS + 4 * LAST_UNIT),
        (3, "fp32", 4 * NUMBERS // RANKS + 4 * LAST_UNIT),
        (1, "bf16", 2 * NUMBERS + 4 * NUMBERS),
        (2, "bf16", 2 * NUMBERS + 4 * NUMBERS // RANKS + 2 * LAST_UNIT),
        (3, "bf16", 4 * NUMBERS // RANKS + 2 * LAST_UNIT),
    ],
)
def test_what_a_stage_holds_is_what_its_definition_says(
    zero_stage: int, precision: str, held: int, tmp_path: Path
) -> None:
    train = {"precision": precision, "micro_batch": 1}
    made = plan("text.txt", {"fsdp": RANKS}, zero_stage=zero_stage, train=train)
    ((state, found),) = run_ranks(state_and_held, 1, tmp_path, replace(made))
    assert state == 12 * NUMBERS // RANKS  # fp32 weights and both moments
    assert held <= found <= 1.02 * held  # and rotary tables, some statistics
