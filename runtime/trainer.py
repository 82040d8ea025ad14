"""The training loop.

`train` is the whole of it; the functions below are its verbs, in the order it uses them.
"""

import hashlib
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from parctl.errors import UsageError
from parctl.planner.plan import Plan
from parctl.recipes.spec import CheckpointSpec, DataSpec, ModelSpec, TrainSpec, to_json
from parctl.runtime import data_parallel
from parctl.runtime.checkpoint import Checkpoints, Progress, read_progress
from parctl.runtime.data import Batches
from parctl.runtime.mesh import RankMesh, set_timeout
from parctl.runtime.metrics import Reporter
from parctl.runtime.optimizer import (
    clip,
    learning_rate,
    make_optimizer,
    own_gradients,
    own_square_sum,
    set_learning_rate,
)
from parctl.runtime.parallelize import ParallelModel, parallelize
from parctl.runtime.tokens import open_stream


class Outcome(Enum):
    FINISHED = "finished"
    STOPPED = "stopped"  # asked to leave, saved, and can go on later


class StopRequest(Protocol):
    """Whether this rank was asked to leave."""

    def __call__(self) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Everything that one rank trains with."""

    plan: Plan
    model: ParallelModel
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


def train(training: Training, *, stop: StopRequest) -> Outcome:
    """Train from the newest checkpoint, or from the start, to the last step."""
    spec, saving, reporter = training.spec, training.saving, training.reporter
    first = resume(training)
    reporter.restart_clock()
    for step in range(first, spec.steps + 1):
        loss_sum = accumulate_gradients(training, step)
        loss, grad_norm, stopping = exchange_totals(training, loss_sum, stopping=stop())
        rate = update_weights(training, step, grad_norm)
        reporter.count_step()
        if step == first:
            set_timeout(training.model.mesh, spec.comm_timeout_s)
        last = step == spec.steps
        validation_loss = None
        if training.validation_batches and (last or step % spec.validate_every == 0):
            validation_loss = validate(training, training.validation_batches)
        if step % spec.log_every == 0 or step == first or last or validation_loss is not None:
            reporter.report(
                step=step, loss=loss, grad_norm=grad_norm, lr=rate, validation_loss=validation_loss
            )
            reporter.restart_clock()
        if stopping or (last and saving.at_end) or (saving.every and step % saving.every == 0):
            save(training, step)
            reporter.restart_clock()
        if stopping and not last:
            return Outcome.STOPPED
    return Outcome.FINISHED


def resume(training: Training) -> int:
    """Load the newest complete checkpoint where there is one. Returns the first step to make.

    A run continues its own checkpoints always, those of another run when `checkpoint.resume` says
    so.
    """
    whole, torn = training.checkpoints.complete()
    for path in torn:
        training.reporter.say(f"skipping {path.name}: its save did not complete")
    newest: list[str | None] = [str(whole[-1]) if whole else None]
    dist.broadcast_object_list(newest)
    if newest[0] is None:
        return 1
    path = Path(newest[0])
    if not training.saving.resume and read_progress(path).run != training.run:
        raise UsageError(
            f"checkpoint.dir = {path.parent} already holds {path.name} of another run",
            hint="set checkpoint.resume: true to continue it, or name another directory",
        )
    progress = training.checkpoints.load(
        path, model_spec(training.plan), training.model.parameters(), training.optimizer
    )
    if (progress.seq_len, progress.cursor) != (
        training.spec.seq_len,
        cursor_before(training.spec, progress.step + 1),
    ):
        raise UsageError(
            f"{path} was written with another train.seq_len or train.global_batch, "
            "so its place in the data has no meaning here",
            hint="set both to what they were, or start in another checkpoint.dir",
        )
    training.reporter.say(f"resuming from {path.name}")
    return progress.step + 1


def accumulate_gradients(training: Training, step: int) -> Tensor:
    """Run all micro-batches of one step.

    Returns the loss sum over this rank's tokens, divided by the global tokens.
    """
    spec, model = training.spec, training.model
    num_tokens = spec.global_batch * spec.seq_len
    num_micro_batches = spec.global_batch // (spec.micro_batch * model.mesh.data_size)
    total = torch.zeros((), dtype=torch.float64, device=model.mesh.device)
    batches = training.train_batches.training(cursor_before(spec, step))
    training.optimizer.zero_grad()
    model.module.train()
    for index, batch in enumerate(batches):
        seed_dropout(spec.seed, step, index, model.mesh.data_rank)
        data_parallel.set_gradient_exchange(
            model.module, model.mesh, last=index == num_micro_batches - 1
        )
        loss = model.loss_sum(batch) / num_tokens
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    model.finish_gradients()
    return total


def exchange_totals(
    training: Training, loss_sum: Tensor, *, stopping: bool
) -> tuple[float, float, bool]:
    """Return the loss, the gradient norm, and whether any rank was asked to stop.

    All three travel in one all-reduce of three numbers, so every rank draws the same conclusions.
    """
    model = training.model
    parameters = model.parameters()
    square_sum = own_square_sum(parameters, own_gradients(parameters), model.mesh)
    flag = torch.tensor(float(stopping), dtype=torch.float64, device=loss_sum.device)
    totals = torch.stack((loss_sum / model.mesh.num_equal_losses, square_sum, flag))
    dist.all_reduce(totals)
    loss, squares, flags = totals.tolist()
    return loss, squares**0.5, flags > 0


def update_weights(training: Training, step: int, grad_norm: float) -> float:
    """Clip and make one optimizer step. Returns the learning rate."""
    spec = training.spec
    rate = learning_rate(spec.optimizer, step, spec.steps)
    set_learning_rate(training.optimizer, rate)
    clip(own_gradients(training.model.parameters()), grad_norm, spec.optimizer.max_grad_norm)
    training.optimizer.step()
    return rate


def validate(training: Training, batches: Batches) -> float:
    """Mean loss over the first `validate_batches` global batches of the validation tokens."""
    model = training.model
    model.module.eval()
    total = torch.zeros((), dtype=torch.float64, device=model.mesh.device)
    num_tokens = 0
    for index in range(training.spec.validate_batches):
        in_batch = batches.validation_tokens(index)
        if in_batch == 0:
            break
        num_tokens += in_batch
        for batch in batches.validation(index):
            with torch.no_grad():
                total += model.loss_sum(batch)
    total /= model.mesh.num_equal_losses
    dist.all_reduce(total)
    return float(total) / num_tokens


def save(training: Training, step: int) -> None:
    spec = training.spec
    progress = Progress(
        run=training.run,
        plan_hash=training.plan.hash,
        step=step,
        tokens=step * spec.global_batch * spec.seq_len,
        cursor=cursor_before(spec, step + 1),
        seq_len=spec.seq_len,
        model=to_json(model_spec(training.plan)),
    )
    path = training.checkpoints.save(progress, training.model.parameters(), training.optimizer)
    training.reporter.say(f"saved {path}")


def model_spec(plan: Plan) -> ModelSpec:
    assert plan.recipe.model
    return plan.recipe.model


def cursor_before(spec: TrainSpec, step: int) -> int:
    """Sequences that the steps before `step` used."""
    return (step - 1) * spec.global_batch


def seed_dropout(seed: int, step: int, micro_batch: int, data_rank: int) -> None:
    """Seed the default generator: equal in a TP group, else different, the same after a resume."""
    key = f"{seed}:{step}:{micro_batch}:{data_rank}"
    torch.manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big"))


def prepare(
    plan: Plan, mesh: RankMesh, run_dir: Path, *, run: str, attempt: int, leader: bool
) -> Training:
    """Open the data, build this rank's part of the model, and open what is written."""
    recipe = plan.recipe
    spec, model = recipe.train, model_spec(plan)
    assert spec and recipe.data and recipe.checkpoint
    train_batches, validation_batches = open_batches(
        recipe.data, spec, model, mesh, run_dir / "data", leader=leader
    )
    parallel = parallelize(model, recipe.parallelism, spec, mesh)
    return Training(
        plan=plan,
        model=parallel,
        optimizer=make_optimizer(parallel.parameters(), spec.optimizer),
        train_batches=train_batches,
        validation_batches=validation_batches if spec.validate_every else None,
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

    def stream(sources: tuple[str, ...]):  # type: ignore[no-untyped-def]
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
