"""All that one rank trains with, and how it is made from a plan."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from parctl.planner.plan import Plan
from parctl.recipes.spec import CheckpointSpec, DataSpec, ModelSpec, TrainSpec
from parctl.runtime.checkpoint import Checkpoints
from parctl.runtime.data import Batches
from parctl.runtime.mesh import RankMesh
from parctl.runtime.metrics import Reporter
from parctl.runtime.optimizer import make_optimizer
from parctl.runtime.parallelize import ParallelModel, parallelize
from parctl.runtime.passes import Passes, make_passes
from parctl.runtime.tokens import TokenStream, open_stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Everything that one rank trains with."""

    plan: Plan
    model: ParallelModel
    passes: Passes
    optimizer: torch.optim.AdamW
    train_batches: Batches
    validation_batches: Batches | None
    checkpoints: Checkpoints
    reporter: Reporter
    run: str

    @property
    def spec(self) -> TrainSpec:
        assert self.plan.recipe.train
        return self.plan.recipe.train

    @property
    def saving(self) -> CheckpointSpec:
        assert self.plan.recipe.checkpoint
        return self.plan.recipe.checkpoint

    @property
    def model_spec(self) -> ModelSpec:
        assert self.plan.recipe.model
        return self.plan.recipe.model


def prepare(
    plan: Plan, mesh: RankMesh, run_dir: Path, *, run: str, attempt: int, leader: bool
) -> Training:
    """Open the data, build this rank's part of the model, and open what is written."""
    recipe = plan.recipe
    spec, model = recipe.train, recipe.model
    assert spec and model and recipe.data and recipe.checkpoint
    train_batches, validation_batches = open_batches(
        recipe.data, spec, model, mesh, run_dir / "data", leader=leader
    )
    parallel = parallelize(model, recipe.parallelism, spec, mesh)
    return Training(
        plan=plan,
        model=parallel,
        passes=make_passes(parallel, spec),
        optimizer=make_optimizer(parallel.parameters(), spec.optimizer),
        train_batches=train_batches,
        validation_batches=validation_batches,
        checkpoints=Checkpoints(
            Path(recipe.checkpoint.dir or run_dir / "checkpoints"), recipe.checkpoint
        ),
        reporter=Reporter(
            path=run_dir / "metrics.jsonl" if mesh.rank == 0 else None,
            run=run,
            attempt=attempt,
            steps=spec.steps,
            tokens_per_step=spec.global_batch * spec.seq_len,
            world_size=dist.get_world_size(),
            estimates=plan.time,
            device=mesh.device,
        ),
        run=run,
    )


def open_batches(
    data: DataSpec,
    spec: TrainSpec,
    model: ModelSpec,
    mesh: RankMesh,
    directory: Path,
    *,
    leader: bool,
) -> tuple[Batches, Batches | None]:
    """Open training and validation data.

    Without validation files the end of the training tokens is held out.
    """

    def stream(sources: tuple[str, ...]) -> TokenStream:
        return open_stream(
            sources,
            data,
            vocab_size=model.vocab_size,
            directory=directory,
            leader=leader,
            barrier=dist.barrier,
        )

    tokens = stream(data.train)
    if data.validation:
        held_out = stream(data.validation)
    else:
        tokens, held_out = tokens.split(len(tokens) - int(len(tokens) * data.validation_fraction))
    validation = None
    if spec.validate_every:
        validation = Batches(held_out, spec, mesh, what="validation")
    return Batches(tokens, spec, mesh, what="train"), validation
