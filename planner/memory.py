"""Memory of one rank, stage by stage and term by term, in bytes.

total = weights + gradients + optimizer   closed forms, `parctl.planner.states`
      + gathered                          FSDP's transient copies of whole layers
      + activations                       `parctl.planner.activations`
      + the larger of working, logits     one layer run again, or the loss: never together
      + buffers                           device context and collective buffers
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from parctl.planner import activations, shards, states
from parctl.planner.activations import Kind
from parctl.planner.degrees import Degrees, num_micro_batches
from parctl.planner.schedules import stage_ranks
from parctl.planner.shards import Shard
from parctl.planner.staged_memory import StagedMemory
from parctl.planner.stages import split_layers
from parctl.planner.states import Regime
from parctl.recipes.parameters import ModelCount, count_parameters, is_sparse
from parctl.recipes.spec import Recipe

# CUDA context 0.5 to 1 GB, NCCL buffers 1 to 3 GB (same source): 0.75 + 1.25
GPU_BUFFER_BYTES = 2_000_000_000
CPU_BUFFER_BYTES = 0  # ranks on CPU share the process image, and gloo's buffers are small


@dataclass(frozen=True, slots=True, kw_only=True)
class StageMemory:
    """Peak bytes on each rank of one pipeline rank's stages."""

    stage: int  # pipeline rank
    layers: int
    parameters: int  # on one rank, before the data axes shard them
    micro_batches: float  # whose activations are alive at the peak
    weights: int
    gradients: int
    optimizer: int
    gathered: int
    activations: int
    working: int
    logits: int
    buffers: int

    @property
    def total(self) -> int:
        """All terms, but of `working` and `logits` the larger: they are not there together."""
        state = self.weights + self.gradients + self.optimizer + self.gathered
        return state + self.activations + max(self.working, self.logits) + self.buffers


TERMS = tuple(field.name for field in fields(StageMemory))[4:]


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory(StagedMemory[StageMemory]):
    """What training needs."""

    regime: str

    def own_json(self) -> dict[str, Any]:
        return {"regime": self.regime}


def estimate_memory(
    recipe: Recipe,
    degrees: Degrees,
    *,
    stages: Sequence[Sequence[int]] | None = None,
    device_bytes: int | None,
    kind: Kind,
) -> Memory:
    """Estimate the training memory of `recipe` split by `degrees`.

    Layers are dealt out unless `stages` says how.
    """
    train, spec = recipe.train, recipe.parallelism
    assert train is not None
    held = held_by_stage(recipe, degrees, stages=stages, kind=kind)
    sharing = Sharing(
        zero_stage=spec.zero_stage,
        whole_gradients=spec.reduces_once and num_micro_batches(recipe, degrees) > 1,
        offload_optimizer=train.offload_optimizer,
    )
    regime = states.REGIMES[train.precision]
    return memory_of(held, sharing, regime, degrees, device_bytes=device_bytes, kind=kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a rank of one pipeline rank's stages holds, however the data axes share its state."""

    stage: int
    layers: int
    shard: Shard
    unit: Shard  # the largest that is gathered at once
    micro_batches: float
    activations: int
    working: int
    logits: int


def held_by_stage(
    recipe: Recipe,
    degrees: Degrees,
    *,
    stages: Sequence[Sequence[int]] | None,
    kind: Kind,
    count: ModelCount | None = None,
    heaviest: bool = False,
) -> tuple[Held, ...]:
    """Count what does not depend on how `dp` and `fsdp` divide the data ranks.

    `count`: of the model, where it is known. `heaviest`: of ranks with equal layers the first one
    only, which under every named schedule keeps the most.
    """
    model, train, spec = recipe.model, recipe.train, recipe.parallelism
    assert model is not None and train is not None
    count = count or count_parameters(model)
    regime = states.REGIMES[train.precision]
    chunks = stages or split_layers(model, degrees.pp * spec.virtual_stages)
    shapes = activations.Shapes(
        model=model, train=train, spec=spec, degrees=degrees, regime=regime, kind=kind
    )
    held: list[list[int]] = [[] for _ in range(degrees.pp)]
    for chunk, rank in enumerate(stage_ranks(spec, degrees.pp)):
        held[rank].append(chunk)
    micro_batches = num_micro_batches(recipe, degrees)
    found = []
    alike: dict[tuple[bool, str], activations.LayerActivations] = {}

    def of_layer(layer: int) -> activations.LayerActivations:
        key = (is_sparse(model, layer), train.recompute_of(layer))
        if key not in alike:
            alike[key] = activations.layer_activations(shapes, layer)
        return alike[key]

    plain = model.moe is None and not train.recompute_layers
    equal: dict[tuple[int, ...], tuple[Shard, Shard, int, int]] = {}

    def of_layers(
        layers: Sequence[int], *, first: bool, last: bool
    ) -> tuple[Shard, Shard, int, int]:
        """Shard, largest unit, bytes stored and working; found once for stages that are alike."""
        key = (first, last, len(layers)) if plain else (first, last, *layers)
        if key not in equal:
            per_layer = [of_layer(layer) for layer in (layers[:1] if plain else layers)]
            equal[key] = (
                shards.stage_shard(model, count, layers, degrees, first=first, last=last),
                shards.largest_unit(model, count, layers, degrees, first=first, last=last),
                sum(layer.stored for layer in per_layer) * (len(layers) if plain else 1),
                max(layer.working for layer in per_layer),
            )
        return equal[key]

    for rank, own in enumerate(held):
        first, last = 0 in own, len(chunks) - 1 in own
        number = sum(len(chunks[chunk]) for chunk in own)
        if heaviest and plain and (first, last, number) in equal:
            continue
        layers = [layer for chunk in own for layer in chunks[chunk]]
        shard, unit, stored, working = of_layers(layers, first=first, last=last)
        alive = activations.in_flight(rank, spec, degrees, micro_batches)
        found.append(
            Held(
                stage=rank,
                layers=number,
                shard=shard,
                unit=unit,
                micro_batches=alive,
                activations=round(alive * stored)
                + (activations.outside_layers(shapes) if last else 0),
                working=working,
                logits=activations.logits_bytes(shapes) if last else 0,
            )
        )
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """How the data axes share the state."""

    zero_stage: int
    whole_gradients: bool  # they wait for the last micro-batch of a step
    offload_optimizer: bool


def memory_of(
    held: Sequence[Held],
    sharing: Sharing,
    regime: Regime,
    degrees: Degrees,
    *,
    device_bytes: int | None,
    kind: Kind,
) -> Memory:
    """Add weights, gradients and optimizer state, as the data axes share them."""
    estimates = []
    stage = sharing.zero_stage
    for part in held:
        shard = part.shard
        # on CPUs gradients cross in the compute type, unless they are added up before
        narrow = kind == "cpu" and not sharing.whole_gradients and degrees.pp == 1
        state = states.state_bytes(
            shard, regime, stage, degrees, whole_gradients=sharing.whole_gradients
        )
        estimates.append(
            StageMemory(
                stage=part.stage,
                layers=part.layers,
                parameters=shard.total,
                micro_batches=part.micro_batches,
                weights=state.weights,
                gradients=state.gradients,
                optimizer=0 if sharing.offload_optimizer else state.optimizer,
                gathered=states.gathered_bytes(
                    shard,
                    part.unit,
                    regime,
                    stage,
                    degrees,
                    crossing=regime.compute if narrow else regime.gradient,
                ),
                activations=part.activations,
                working=part.working,
                logits=part.logits,
                buffers=GPU_BUFFER_BYTES if kind == "gpu" else CPU_BUFFER_BYTES,
            )
        )
    return Memory(
        stages=tuple(estimates), device_bytes=device_bytes, kind=kind, regime=regime.sentence
    )


def unsharded_state_bytes(recipe: Recipe, degrees: Degrees) -> int:
    """State of the worst stage as if no data axis shared in storing it."""
    model, train = recipe.model, recipe.train
    assert model is not None and train is not None
    count = count_parameters(model)
    chunks = split_layers(model, degrees.pp)
    state = states.REGIMES[train.precision].state
    return state * max(
        shards.stage_shard(
            model, count, layers, degrees, first=index == 0, last=index == len(chunks) - 1
        ).total
        for index, layers in enumerate(chunks)
    )
