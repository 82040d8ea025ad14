"""Turn a plain model into this rank's part of the parallel one. The order of the steps is fixed:

1. tensor (and sequence) parallelism, which decides what a rank computes;
2. recomputation, around blocks that are already split;
3. data parallelism, around blocks that already recompute;
4. memory and first weights, only now that a rank knows which part is its own.

The model is made on the meta device, so no rank ever holds more than its part.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from parctl.planner.schedules import stage_ranks
from parctl.recipes.parameters import is_sparse
from parctl.recipes.spec import ModelSpec, ParallelismSpec, TrainSpec
from parctl.runtime.execution import compiling, float8, recompute
from parctl.runtime.expert_load import load_totals
from parctl.runtime.model import initialize
from parctl.runtime.model.router import Router
from parctl.runtime.model.transformer import Part, Transformer
from parctl.runtime.parallel import (
    context_parallel,
    data_parallel,
    expert_parallel,
    expert_placement,
    operator_parallel,
    tensor_parallel,
    tied,
)
from parctl.runtime.parallel.mesh import RankMesh
from parctl.runtime.parallel.tied import TiedEmbedding


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelModel:
    """`partial_over_tp` names the parameters whose gradients are to be summed over tp."""

    stages: tuple[Transformer, ...]  # of this rank, in model order; the whole model without pp
    mesh: RankMesh
    own: Mapping[str, nn.Parameter]
    partial_over_tp: frozenset[str]
    tied: TiedEmbedding | None  # where the embedding and its use as head lie on two stages

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Return this rank's parameters by canonical name, each once.

        The module itself would at times return what FSDP has gathered in their place.
        """
        return self.own

    def train(self, mode: bool = True) -> None:
        """Turn dropout on, or off for evaluation."""
        for stage in self.stages:
            stage.train(mode)

    def buffers(self) -> Mapping[str, Tensor]:
        """Return by canonical name what a checkpoint holds beside parameters: routers' biases."""
        return {
            recompute.canonical_name(f"{name}.router.bias"): moe.router.bias
            for stage in self.stages
            for name, moe in expert_parallel.experts_of(stage)
            if moe.router.bias is not None
        }

    def expert_orders(self) -> expert_placement.Orders:
        """Return the order of experts by parameter, where it is not that of checkpoints."""
        return {
            recompute.canonical_name(f"{name}.experts.{part}"): moe.order
            for stage in self.stages
            for name, moe in expert_parallel.experts_of(stage)
            for part, _ in moe.experts.named_parameters()
            if moe.order is not None
        }

    def to_places(self, state: Mapping[str, Tensor]) -> None:
        """Move what was read in the order of checkpoints to where this layout wants it."""
        if self.mesh.experts is not None:
            ep = self.mesh.experts["ep"].get_group()
            expert_placement.to_places(state, self.expert_orders(), ep)

    def in_checkpoint_order(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if self.mesh.experts is None:
            return state
        ep = self.mesh.experts["ep"].get_group()
        return expert_placement.in_checkpoint_order(state, self.expert_orders(), ep)

    def routers(self) -> dict[int, Router]:
        """Return this rank's routers by layer."""
        return {
            expert_parallel.layer_of(recompute.canonical_name(name)): moe.router
            for stage in self.stages
            for name, moe in expert_parallel.experts_of(stage)
            if name.startswith("blocks.")
        }

    def expert_load(self) -> Tensor:
        """This rank's share of two means over sparse layers; all shares add up to them.

        Of the step so far: load of the busiest expert over the mean load, and the share of choices
        that were dropped.
        """
        model, world = self.stages[0].model, self.mesh.devices.size()
        num_holders = world // (self.mesh.sizes["pp"] * self.mesh.sizes["operator"])
        num_sparse = model.num_mtp_layers + sum(
            is_sparse(model, layer)
            for num_layers in (model.num_layers, model.num_encoder_layers)
            for layer in range(num_layers)
        )
        routers = [
            moe.router for stage in self.stages for _, moe in expert_parallel.experts_of(stage)
        ]
        if not routers:
            return torch.zeros(2, dtype=torch.float64, device=self.mesh.device)
        return load_totals(routers) / (num_holders * num_sparse)

    def finish_step(self) -> None:
        """Do what follows the optimizer's step."""
        for stage in self.stages:
            for _, moe in expert_parallel.experts_of(stage):
                moe.router.finish_step()

    def finish_gradients(self) -> None:
        """Add up what the backward passes left apart."""
        for stage in self.stages:
            data_parallel.sum_gradients(stage, self.mesh)
        if self.tied is not None:
            self.tied.add_gradient()
        for stage in self.stages:
            expert_parallel.sum_over_edp(stage, self.mesh)
        tp = self.mesh.axis("tp")
        if tp is not None:
            names = sorted(self.partial_over_tp)
            tensor_parallel.sum_gradients([self.own[name] for name in names], tp)


def parallelize(
    model: ModelSpec,
    parallelism: ParallelismSpec,
    train: TrainSpec,
    mesh: RankMesh,
    layers: Sequence[Sequence[int]],
) -> ParallelModel:
    """Build this rank's part of the model, with its first weights.

    `layers` are those of every pipeline stage, in model order (`plan.stages`).
    """
    own: dict[str, nn.Parameter] = {}
    partial: set[str] = set()
    stages = []
    for part in own_parts(parallelism, mesh, layers):
        stage, summed = build_stage(model, part, parallelism, train, mesh)
        stages.append(stage)
        partial |= summed
        own |= {
            name: value for name, value in named_parameters(stage) if not tied.is_copy(stage, name)
        }
    initialize.fill(own, num_layers=model.num_layers, seed=train.seed)
    made = ParallelModel(
        stages=tuple(stages),
        mesh=mesh,
        own=own,
        partial_over_tp=frozenset(partial & own.keys()),
        tied=tied.connect(stages, model, parallelism, mesh),
    )
    made.to_places(own)
    return made


def own_parts(
    parallelism: ParallelismSpec, mesh: RankMesh, layers: Sequence[Sequence[int]]
) -> list[Part]:
    """Return what of the model this rank's stages hold, in model order."""
    ranks = stage_ranks(parallelism, mesh.sizes["pp"])
    assert len(ranks) == len(layers), (ranks, layers)
    return [
        Part(layers=tuple(own), first=stage == 0, last=stage == len(layers) - 1)
        for stage, own in enumerate(layers)
        if ranks[stage] == mesh.coordinates["pp"]
    ]


def named_parameters(stage: Transformer) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield a stage's parameters by their names in the plain model."""
    for name, value in stage.named_parameters():
        yield recompute.canonical_name(name), value


def build_stage(
    model: ModelSpec, part: Part, parallelism: ParallelismSpec, train: TrainSpec, mesh: RankMesh
) -> tuple[Transformer, frozenset[str]]:
    """Return a stage with memory, and the names whose gradients are to be summed over tp."""
    dtype = torch.float64 if train.precision == "fp64" else torch.float32
    with torch.device("meta"):
        stage = Transformer(model, part).to(dtype)
    summed = expert_parallel.apply(
        stage, parallelism, mesh, tokens_per_step=train.global_batch * train.seq_len
    )
    tp = mesh.axis("tp")
    if tp is not None:
        summed |= tensor_parallel.apply(stage, tp, sequence_parallel=parallelism.sp)
    operator = mesh.axis("operator")
    if operator is not None:
        operator_parallel.apply(stage, operator)
    recompute.apply(stage, train, tp, sequence_parallel=parallelism.sp)
    float8.apply(stage, train.precision)
    compiling.apply(stage, train)
    data_parallel.apply(stage, mesh, parallelism, precision=train.precision)
    stage.to_empty(device=mesh.device)
    stage.tie()  # allocating has parted what was one
    stage.mtp_loss = train.mtp_loss
    if mesh.cp is not None:
        context_parallel.apply(stage, mesh.cp, parallelism)
    expert_parallel.reset(stage)
    return stage, summed
