"""The training loop.

`train` is the whole of it; the functions below are its verbs, in the order it uses them.
"""

from collections.abc import Callable
from datetime import timedelta
from enum import Enum
from math import isfinite
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from parctl.errors import ParctlError, UsageError
from parctl.recipes.spec import TrainSpec, to_json
from parctl.runtime.checkpoint import Progress, read_progress
from parctl.runtime.data import Batches
from parctl.runtime.mesh import LONG_TIMEOUT, set_timeout
from parctl.runtime.optimizer import (
    clip,
    learning_rate,
    own_gradients,
    own_square_sum,
    set_learning_rate,
)
from parctl.runtime.training import Training


class Outcome(Enum):
    FINISHED = "finished"
    STOPPED = "stopped"  # asked to leave, saved, and can go on later


def train(training: Training, *, stop: Callable[[], bool]) -> Outcome:
    """Train from the newest checkpoint, or from the start, to the last step.

    `stop` says whether this rank was asked to leave.
    """
    spec, saving, reporter = training.spec, training.saving, training.reporter
    first = resume(training)
    reporter.restart_clock()
    for step in range(first, spec.steps + 1):
        loss_sum = accumulate_gradients(training, step)
        loss, grad_norm, stopping = exchange_totals(training, loss_sum, stopping=stop())
        refuse_divergence(step, loss=loss, grad_norm=grad_norm)
        rate = update_weights(training, step, grad_norm)
        reporter.count_step()
        if step == first:
            set_timeout(training.model.mesh, timedelta(seconds=spec.comm_timeout_s))
        last = step == spec.steps
        validation_loss = None
        if training.validation_batches and (last or step % spec.validate_every == 0):
            validation_loss = validate(training, training.validation_batches)
            refuse_divergence(step, validation_loss=validation_loss)
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
        path, training.model_spec, training.model.parameters(), training.optimizer
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
    left = max(0, training.spec.steps - progress.step)
    training.reporter.say(f"resuming from {path.name}, {left} of {training.spec.steps} steps left")
    return progress.step + 1


def accumulate_gradients(training: Training, step: int) -> Tensor:
    """Run all micro-batches of one step.

    Returns the loss sum over this rank's tokens, divided by the global tokens.
    """
    spec, model = training.spec, training.model
    batches = list(training.train_batches.training(cursor_before(spec, step)))
    training.optimizer.zero_grad()
    model.train()
    loss_sum = training.passes.train(
        batches, step=step, num_tokens=spec.global_batch * spec.seq_len
    )
    model.finish_gradients()
    return loss_sum


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


def refuse_divergence(step: int, **numbers: float) -> None:
    """Raise when a number is not finite: no later step would mend the weights.

    All ranks hold the same numbers, so all of them leave here.
    """
    wrong = [f"{name} {value}" for name, value in numbers.items() if not isfinite(value)]
    if wrong:
        raise ParctlError(
            f"training diverged at step {step}: {', '.join(wrong)}",
            hint="lower train.optimizer.lr, lengthen train.optimizer.warmup_steps, "
            "or set train.optimizer.max_grad_norm",
        )


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
    model.train(False)
    total = torch.zeros((), dtype=torch.float64, device=model.mesh.device)
    num_tokens = 0
    for index in range(training.spec.validate_batches):
        in_batch = batches.validation_tokens(index)
        if in_batch == 0:
            break
        num_tokens += in_batch
        total += training.passes.evaluate(list(batches.validation(index)))
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
        model=to_json(training.model_spec),
    )
    set_timeout(training.model.mesh, LONG_TIMEOUT)  # the slowest disk decides
    path = training.checkpoints.save(progress, training.model.parameters(), training.optimizer)
    set_timeout(training.model.mesh, timedelta(seconds=spec.comm_timeout_s))
    training.reporter.say(f"saved {path}")


def cursor_before(spec: TrainSpec, step: int) -> int:
    """Sequences that the steps before `step` used."""
    return (step - 1) * spec.global_batch
