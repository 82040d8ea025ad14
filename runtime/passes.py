"""The passes of one step: forward and backward through all micro-batches, or forward only.

`make_passes` chooses how this rank's stages are run. The trainer knows only the two verbs.
"""

import hashlib
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from parctl.recipes.spec import TrainSpec
from parctl.runtime import data_parallel
from parctl.runtime.data import MicroBatch
from parctl.runtime.loss import token_loss_sum
from parctl.runtime.parallelize import ParallelModel
from parctl.runtime.transformer import Transformer


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
            seed_dropout(self._seed, step, index, self._mesh.data_rank)
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
        stage: Transformer = self._stage
        logits = stage(batch.tokens)
        return token_loss_sum(logits, batch.targets, self._mesh, stage.model.vocab_size)


def make_passes(model: ParallelModel, train: TrainSpec) -> Passes:
    return WholeModel(model, train)


def seed_dropout(seed: int, step: int, micro_batch: int, data_rank: int) -> None:
    """Seed the default generator: equal in a TP group, else different, the same after a resume."""
    key = f"{seed}:{step}:{micro_batch}:{data_rank}"
    torch.manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big"))
