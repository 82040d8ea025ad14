"""What the planner says of models with experts against what the runtime holds, to the byte.

A fake process group stands in for the other ranks; nothing is run, since it would answer how many
rows each expert gets with noise.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.planner.live_bytes import fake_world
from tests.runtime.harness import run_ranks
from tests.runtime.plans import plan
from torch.distributed.tensor import DTensor

from parctl.planner.degrees import Degrees, with_degrees
from parctl.planner.memory import estimate_memory
from parctl.planner.plan import Plan
from parctl.recipes.loader import load_recipe
from parctl.runtime.parallel.mesh import build_mesh
from parctl.runtime.parallel.parallelize import parallelize


def held_bytes(made: Plan) -> int:
    """Bytes of rank 0's parameters."""
    model, train = made.recipe.model, made.recipe.train
    assert model and train
    with fake_world(made.layout.world_size):
        mesh = build_mesh(made.layout, torch.device("cpu"), wrap_alone=False)
        parallel = parallelize(model, made.recipe.parallelism, train, mesh, made.stages)
        total = 0
        for parameter in parallel.parameters().values():
            own = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            total += own.numel() * own.element_size()
        return total


@pytest.mark.parametrize(
    ("axes", "expert"),
    [
        ({"dp": 2}, {}),
        ({"fsdp": 2}, {}),
        ({"tp": 2}, {}),
        ({"fsdp": 2, "tp": 2}, {}),
        ({"dp": 2}, {"ep": 2}),
        ({"fsdp": 4}, {"ep": 2}),
        ({"dp": 2, "fsdp": 2}, {"ep": 2}),
        ({"dp": 2, "fsdp": 4}, {"ep": 2}),
        ({"dp": 2, "tp": 2}, {"ep": 2}),
        ({"fsdp": 4, "tp": 2}, {"ep": 2}),
        ({"fsdp": 2, "tp": 2}, {"ep": 2, "etp": 2}),
        ({"fsdp": 2, "tp": 2}, {"ep": 4}),
        ({"fsdp": 2, "tp": 4}, {"ep": 2, "etp": 2}),
        ({"fsdp": 2, "cp": 2}, {"ep": 2}),
        ({"dp": 2, "cp": 2}, {"ep": 2}),
    ],
    ids=str,
)
def test_predicted_weights_are_what_a_rank_holds(
    axes: Mapping[str, int], expert: Mapping[str, int], tmp_path: Path
) -> None:
    base, degrees = load_recipe("tiny-moe"), Degrees(**axes, **expert)
    assert base.model and base.train
    train = replace(base.train, micro_batch=1, global_batch=degrees.num_data_ranks)
    spec = replace(with_degrees(base.parallelism, degrees), zero_stage=3 if degrees.fsdp > 1 else 0)
    recipe = replace(base, parallelism=spec, train=train)
    estimate = estimate_memory(recipe, degrees, device_bytes=None, kind="cpu").worst
    made = plan("text.txt", axes, model=base.model, spec=dict(expert))
    made = replace(made, recipe=recipe)
    (held,) = run_ranks(held_bytes, 1, tmp_path, made)
    assert estimate.weights == held
