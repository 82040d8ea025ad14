"""The passes of one step: forward and backward through all micro-batches, or forward only.

`make_passes` chooses how this rank's stages are run. The trainer knows only the two verbs.
"""

import hashlib
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from parctl.recipes.spec import ParallelismSpec, TrainSpec
from parctl.runtime.data.batches import MicroBatch
from parctl.runtime.model.loss import token_loss_sum
from parctl.runtime.model.transformer import Transformer
from parctl.runtime.parallel import data_parallel
from parctl.runtime.parallel.mesh import RankMesh
from parctl.runtime.parallel.parallelize import ParallelModel


class Passes(Protocol):
    def train(self, batches: Sequence[MicroBatch], *, step: int, num_tokens: int) -> Tensor:
        """Add the gradients of one step to the parameters.

        Returns the loss sum over this rank's tokens, divided by `num_tokens` of all ranks; a scalar
        in float64.
        """

    def evaluate(self, batches: Sequence[MicroBatch]) -> Tensor:
        """Return the loss sum over this rank's tokens, a scalar in float64."""


class WholeModel:
    """One micro-batch after the other through the one stage that is the model."""

    def __init__(self, model: ParallelModel, train: TrainSpec) -> None:
        (self._stage,) = model.stages
        self._mesh, self._seed = model.mesh, train.seed

    def train(self, batches: Sequence[MicroBatch], *, step: int, num_tokens: int) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=self._mesh.device)
        for index, batch in enumerate(batches):
            seed_dropout(self._seed, step, index, self._mesh.token_rank)
            data_parallel.set_gradient_exchange(
                self._stage, self._mesh, last=index == len(batches) - 1
            )
            loss = self._loss_sum(batch) / num_tokens
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def evaluate(self, batches: Sequence[MicroBatch]) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=self._mesh.device)
        with torch.no_grad():
            for batch in batches:
                total += self._loss_sum(batch)
        data_parallel.free_gathered(self._stage)
        return total

    def _loss_sum(self, batch: MicroBatch) -> Tensor:
        logits = run_stage(self._stage, batch.tokens, batch)
        return loss_sum(self._stage, logits, batch, self._mesh)


def run_stage(stage: Transformer, x: Tensor, batch: MicroBatch) -> Tensor:
    """Run a stage of any kind on tokens (the first) or the stream. Returns the stream, or logits.

    What a stage needs to know of the micro-batch beside `x` is handed over here.
    """
    out: Tensor = stage(x, **batch.context())
    return out


def loss_sum(stage: Transformer, out: Tensor, batch: MicroBatch, mesh: RankMesh) -> Tensor:
    """Return the loss sum of a micro-batch from what the last stage returned."""
    vocab_size = stage.num_logits
    if not stage.mtp or not stage.training:
        return token_loss_sum(out, batch.targets, mesh, vocab_size)
    assert batch.following is not None
    logits, *ahead = out.chunk(1 + len(stage.mtp))
    total = token_loss_sum(logits, batch.targets, mesh, vocab_size)
    for depth, logits in enumerate(ahead, start=1):
        loss = token_loss_sum(logits, batch.following[..., depth], mesh, vocab_size)
        total = total + stage.mtp_loss / len(ahead) * loss
    return total


def make_passes(model: ParallelModel, parallelism: ParallelismSpec, train: TrainSpec) -> Passes:
    if model.mesh.sizes["pp"] == 1:
        return WholeModel(model, train)
    from parctl.runtime.parallel.pipeline import Pipeline  # which uses the functions above

    return Pipeline(model, parallelism, train)


def seed_dropout(seed: int, step: int, micro_batch: int, data_rank: int, stage: int = 0) -> None:
    """Seed the default generator: equal in a TP group, else different, the same after a resume."""
    key = f"{seed}:{step}:{micro_batch}:{data_rank}" + (f":{stage}" if stage else "")
    torch.manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big"))
