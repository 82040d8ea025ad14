"""The training loop.

`train` is the whole of it; the functions below are its verbs, in the order it uses them.
"""

from collections.abc import Callable
from datetime import timedelta
from enum import Enum
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from parctl.errors import ParctlError, UsageError
from parctl.recipes.frozen import to_json
from parctl.recipes.spec import TrainSpec
from parctl.runtime import expert_load
from parctl.runtime.checkpoint.checkpoints import (
    Progress,
    read_progress,
    refuse_other_model,
    tensors,
)
from parctl.runtime.data.batches import Batches
from parctl.runtime.huggingface import weights as huggingface
from parctl.runtime.optimizer import (
    clip,
    learning_rate,
    own_gradients,
    set_learning_rate,
    set_step,
)
from parctl.runtime.parallel.mesh import set_timeout
from parctl.runtime.totals import Totals, Watch, diverged, divergence, exchange_totals
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
    watch = Watch(spec, reporter.say)
    reporter.restart_clock()
    for step in range(first, spec.steps + 1):
        loss_sum = accumulate_gradients(training, step)
        # a save in the background that failed ends the run as soon as all ranks know
        leaving = stop() or training.checkpoints.failed
        totals = exchange_totals(training.model, step, loss_sum, stopping=leaving)
        rate = update_weights(training, totals)
        reporter.count_step()
        if step == first:
            set_timeout(training.model.mesh, timedelta(seconds=spec.comm_timeout_s))
        last = step == spec.steps
        validating = training.validation_batches and (last or step % spec.validate_every == 0)
        reporting = step % spec.log_every == 0 or step == first or last or validating
        due = (last and saving.at_end) or (saving.every and step % saving.every == 0)
        stopping = watch.see(totals, at_once=bool(reporting or due))
        validation_loss = None
        if validating and training.validation_batches:
            validation_loss = validate(training, training.validation_batches)
            if wrong := divergence(validation_loss=validation_loss):
                raise diverged(step, wrong)
        if reporting:
            reporter.report(
                step=step,
                loss=watch.latest.loss,
                grad_norm=watch.latest.grad_norm,
                lr=rate,
                validation_loss=validation_loss,
                expert_load=watch.latest.expert_load,
            )
            reporter.restart_clock()
        if stopping or due:
            save(training, step)
            reporter.restart_clock()
        if stopping and not last:
            training.checkpoints.finish()
            return Outcome.STOPPED
    training.checkpoints.finish()
    if training.model_spec.moe:
        path = training.run_dir / expert_load.FILE
        expert_load.write(training.model.routers(), training.model_spec.num_layers, path)
    return Outcome.FINISHED


def resume(training: Training) -> int:
    """Load the newest complete checkpoint where there is one. Returns the first step to make.

    A run continues its own checkpoints always, those of another run when `checkpoint.resume` says
    so.
    """
    path = newest_checkpoint(training)
    if path is None:
        if training.saving.init_from:
            weights = {**training.model.parameters(), **training.model.buffers()}
            huggingface.load(Path(training.saving.init_from), training.model_spec, weights)
            training.model.to_places(weights)
            training.reporter.say(f"starting from the weights in {training.saving.init_from}")
        return 1
    progress = read_progress(path)
    if not training.saving.resume and progress.run != training.run:
        raise UsageError(
            f"checkpoint.dir = {path.parent} already holds {path.name} of another run",
            hint="set checkpoint.resume: true to continue it, or name another directory",
        )
    refuse_other_model(path, progress.model, training.model_spec)
    state = state_of(training)
    training.checkpoints.load(path, state)
    training.model.to_places(state)
    set_step(training.optimizer, progress.step)
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


def newest_checkpoint(training: Training) -> Path | None:
    """Return the newest whole checkpoint, having said which ones are passed over and why."""
    checkpoints, say = training.checkpoints, training.reporter.say
    found = checkpoints.find()
    for torn in found.torn:
        say(f"skipping {torn.name}: its save did not complete")
    damaged = dict(found.damaged)
    for path in reversed(found.whole):
        problem = checkpoints.damage(path)
        if problem is None:
            break
        damaged[path] = problem
    else:
        path = None
    for bad, problem in damaged.items():
        if path is None:  # starting over would throw the run's work away without a word
            raise ParctlError(
                f"every checkpoint in {bad.parent} is damaged; {bad.name}: {problem}",
                hint="remove them to start over, or bring back the files",
            )
        say(f"skipping {bad.name}: {problem}")
    return path


def state_of(training: Training) -> dict[str, Tensor]:
    """Return every tensor that a checkpoint holds."""
    return tensors(training.model.parameters(), training.optimizer, training.model.buffers())


def accumulate_gradients(training: Training, step: int) -> Tensor:
    """Run all micro-batches of one step.

    Returns the loss sum over this rank's tokens, divided by the global tokens.
    """
    spec, model = training.spec, training.model
    batches = list(training.train_batches.training(cursor_before(spec, step)))
    training.optimizer.zero_grad()
    model.train()
    loss_sum = training.passes.train(
        batches, step=step, num_tokens=spec.global_batch * training.targets_per_row
    )
    model.finish_gradients()
    return loss_sum


def update_weights(training: Training, totals: Totals) -> float:
    """Clip and make one optimizer step, unless it diverged. Returns the learning rate.

    The host reads nothing here: the device is still busy with the backward pass.
    """
    spec, model = training.spec, training.model
    rate = learning_rate(spec.optimizer, totals.step, spec.steps)
    set_learning_rate(training.optimizer, rate)
    clip(own_gradients(model.parameters()), totals.norm, spec.optimizer.max_grad_norm)
    training.optimizer.update(skip=totals.diverged)
    model.finish_step()
    return rate


def validate(training: Training, batches: Batches) -> float:
    """Mean loss over the first `validate_batches` global batches of the validation tokens."""
    model = training.model
    model.train(False)
    total = torch.zeros((), dtype=torch.float64, device=model.mesh.device)
    num_tokens = 0
    for index in range(training.spec.validate_batches):
        in_batch = batches.validation_rows(index) * training.targets_per_row
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
    state = training.model.in_checkpoint_order(state_of(training))
    training.checkpoints.save(progress, state)


def cursor_before(spec: TrainSpec, step: int) -> int:
    """Sequences that the steps before `step` used."""
    return (step - 1) * spec.global_batch
