"""Turn a plain model into this rank's part of the parallel one. The order of the steps is fixed:

1. tensor (and sequence) parallelism, which decides what a rank computes;
2. recomputation, around blocks that are already split;
3. data parallelism, around blocks that already recompute;
4. memory and first weights, only now that a rank knows which part is its own.

The model is made on the meta device, so no rank ever holds more than its part.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from parctl.recipes.spec import ModelSpec, ParallelismSpec, TrainSpec
from parctl.runtime import data_parallel, initialize, recompute, tensor_parallel
from parctl.runtime.mesh import RankMesh
from parctl.runtime.transformer import Part, Transformer, whole


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelModel:
    """`partial_over_tp` names the parameters whose gradients are to be summed over tp."""

    stages: tuple[Transformer, ...]  # of this rank, in model order; the whole model without pp
    mesh: RankMesh
    own: Mapping[str, nn.Parameter]
    partial_over_tp: frozenset[str]

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Return this rank's parameters by canonical name, each once.

        The module itself would at times return what FSDP has gathered in their place.
        """
        return self.own

    def train(self, mode: bool = True) -> None:
        """Turn dropout on, or off for evaluation."""
        for stage in self.stages:
            stage.train(mode)

    def finish_gradients(self) -> None:
        """Add up what the backward passes left apart."""
        tp = self.mesh.axis("tp")
        if tp is not None:
            names = sorted(self.partial_over_tp)
            tensor_parallel.sum_gradients([self.own[name] for name in names], tp)


def parallelize(
    model: ModelSpec, parallelism: ParallelismSpec, train: TrainSpec, mesh: RankMesh
) -> ParallelModel:
    """Build this rank's part of the model, with its first weights."""
    own: dict[str, nn.Parameter] = {}
    partial: set[str] = set()
    stages = []
    for part in (whole(model),):
        stage, summed = build_stage(model, part, parallelism, train, mesh)
        stages.append(stage)
        partial |= summed
        own |= {recompute.canonical_name(name): value for name, value in stage.named_parameters()}
    initialize.fill(own, num_layers=model.num_layers, seed=train.seed)
    return ParallelModel(
        stages=tuple(stages), mesh=mesh, own=own, partial_over_tp=frozenset(partial)
    )


def build_stage(
    model: ModelSpec, part: Part, parallelism: ParallelismSpec, train: TrainSpec, mesh: RankMesh
) -> tuple[Transformer, frozenset[str]]:
    """Return a stage with memory, and the names whose gradients are to be summed over tp."""
    dtype = torch.float64 if train.precision == "fp64" else torch.float32
    with torch.device("meta"):
        stage = Transformer(model, part).to(dtype)
    summed: frozenset[str] = frozenset()
    tp = mesh.axis("tp")
    if tp is not None:
        summed = tensor_parallel.apply(stage, tp, sequence_parallel=parallelism.sp)
    recompute.apply(stage, train.recompute)
    data_parallel.apply(stage, mesh, precision=train.precision, zero_stage=parallelism.zero_stage)
    stage.to_empty(device=mesh.device)
    stage.tie()  # allocating has parted what was one
    return stage, summed
