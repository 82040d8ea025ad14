"""Data parallelism: replicas (DDP), shards (ZeRO-1 to ZeRO-3 on FSDP2), replicas of shards (HSDP).

Gradients are summed, never averaged: the loss is already divided by the tokens of the global batch,
so that the same division is right under accumulation and every mix of axes.

    replicas  backward: all-reduce (on the CPUs of one node, in float32: after it)
    shards    forward: all-gather, backward: all-gather (if freed since), reduce-scatter
    both      the shards' exchanges inside a replica, then all-reduce of the shards

The three stages of ZeRO (1910.02054) are one mechanism at three settings. What belongs to a step of
m micro-batches, and what is whole between its first forward and its last backward pass:

    stage  all-gathers  reduce-scatters  whole
    1      1            1                parameters (compute type), gradients
    2      1            m                parameters (compute type)
    3      2 m          m                two units at a time

Stage 1 thus makes the two exchanges of a distributed optimizer, each overlapped with the pass that
it borders on. torch's ZeroRedundancyOptimizer is not used: it broadcasts whole parameters rank by
rank, knows no DTensor (so neither TP nor resharding by name), and gradients are all-reduced first.
"""

from typing import Any, cast

import torch
from torch import nn
from torch.distributed._composable.replicate_with_fsdp import replicate
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from parctl.recipes.spec import ParallelismSpec, Precision
from parctl.runtime.model.linear import local
from parctl.runtime.model.transformer import Embedding, Transformer, shares_embedding
from parctl.runtime.parallel import expert_parallel, shared_memory
from parctl.runtime.parallel.collectives import sum_in_place
from parctl.runtime.parallel.mesh import RankMesh
from parctl.runtime.parallel.shard_exchanges import GradientSum, ParameterGather

COMPUTE_TYPES = {"bf16": torch.bfloat16, "fp8": torch.bfloat16}  # others compute as they store


def apply(
    model: Transformer, mesh: RankMesh, parallelism: ParallelismSpec, *, precision: Precision
) -> None:
    """Wrap blocks, embedding, head and the rest, in place.

    One data rank needs no wrapper, except to compute in bfloat16, and replicas that share memory
    need none.
    """
    data = mesh.axis("dp", "fsdp")
    if data is None or (data.size() == 1 and precision not in COMPUTE_TYPES):
        return
    if stay_plain(mesh, parallelism, precision):
        return
    policy = mixed_precision(precision)
    parts = units(model)
    apart = expert_parallel.without_shards(model, mesh)
    placing = expert_parallel.placing(model, mesh)
    for unit, freed in parts:
        if mesh.axis("fsdp") is None:
            replicate(unit, mesh=data, mp_policy=policy, ignored_params=apart)
        else:
            fully_shard(
                unit,
                mesh=data,
                mp_policy=policy,
                reshard_after_forward=reshard_policy(parallelism, freed),
                shard_placement_fn=placing,
            )
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
            # a lookup's gradient needs no weights; a table that is also the head is not in here
            module.set_unshard_in_backward(not isinstance(module, Embedding))
    shards = mesh.axis("fsdp")
    if shards is not None and shards.size() > 1 and mesh.device.type == "cpu":
        shared_memory.connect(shards)
        sent = sent_type(mesh, parallelism, precision)
        for unit, _ in parts:
            first = unit[0] if isinstance(unit, list) else unit
            if mesh.experts is None or not any(expert_parallel.experts_of(first)):
                first.set_custom_all_gather(ParameterGather())
                first.set_custom_reduce_scatter(GradientSum(sent))
    model.gathers_once = reshard_policy(parallelism, True) is False
    model.reduces_once = parallelism.reduces_once
    if parallelism.prefetch > 1:
        prefetch(in_order_of_use(parts), parallelism.prefetch)


def stay_plain(mesh: RankMesh, parallelism: ParallelismSpec, precision: Precision) -> bool:
    """Whether `sum_gradients` is all that data parallelism takes: replicas that share memory.

    torch's wrapper copies gradients three times before it exchanges them.
    """
    data = mesh.axis("dp")
    exchanges_once = parallelism.reduces_once and mesh.axis("fsdp") is None
    if data is None or precision in COMPUTE_TYPES or not exchanges_once:
        return False
    shared_memory.connect(data)
    return shared_memory.of(data.get_group()) is not None


def sum_gradients(model: nn.Module, mesh: RankMesh) -> None:
    """Add up the gradients of replicas that stayed plain, after the last backward pass."""
    data = mesh.axis("dp")
    if data is None or isinstance(model, FSDPModule):
        return
    apart = expert_parallel.without_shards(model, mesh)
    gradients = [value.grad for value in model.parameters() if value not in apart]
    present = [local(gradient) for gradient in gradients if gradient is not None]
    sum_in_place(present, data.get_group())


def mixed_precision(precision: Precision) -> MixedPrecisionPolicy:
    """bf16: compute in bfloat16 from float32 weights, and add gradients up in float32."""
    if precision in COMPUTE_TYPES:
        return MixedPrecisionPolicy(
            param_dtype=COMPUTE_TYPES[precision],
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
        )
    return MixedPrecisionPolicy(cast_forward_inputs=False)


def sent_type(
    mesh: RankMesh, parallelism: ParallelismSpec, precision: Precision
) -> torch.dtype | None:
    """The type in which gradients cross, where they are added up in float32 only on arrival.

    Not where a rank adds up gradients before they cross, in float32: those of several
    micro-batches, or in a pipeline those that its schedule has put off.
    """
    if parallelism.reduces_once or mesh.sizes["pp"] > 1:
        return None
    return COMPUTE_TYPES.get(precision)


def units(model: Transformer) -> list[tuple[Any, bool]]:
    """What is gathered at once, innermost first, and whether it is freed between the passes.

    The backward pass begins where the forward pass ends, so freeing the head would be in vain. A
    head tied to the embedding must be gathered together with it: both stay in the model's own unit.
    """
    layers = [block for stack in model.stacks() for block in stack.values()]
    parts: list[tuple[Any, bool]] = [(block, True) for block in layers]
    parts += [(module, True) for module in model.mtp.values()]
    if not shares_embedding(model.model):
        if model.embedding is not None:
            parts.append((model.embedding, True))
        if model.head is not None:
            parts.append(([model.final_norm, model.head], False))
    return [*parts, (model, False)]


def reshard_policy(parallelism: ParallelismSpec, freed: bool) -> bool | int:
    """Whether a unit is freed after its forward pass, or kept in groups of so many ranks."""
    match parallelism.reshard:
        case "auto":
            return parallelism.zero_stage == 3 and freed
        case "always":
            return True
        case "never":
            return False
        case size:
            return size if freed else False


def in_order_of_use(parts: list[tuple[Any, bool]]) -> list[FSDPModule]:
    """Return the units as the forward pass meets them: embedding, blocks, head.

    Of several modules that are one unit, the first.
    """
    modules = [unit[0] if isinstance(unit, list) else unit for unit, _ in parts[:-1]]
    return sorted(modules, key=lambda module: not isinstance(module, Embedding))


def prefetch(modules: list[FSDPModule], depth: int) -> None:
    """Gather the next `depth` units while one computes. torch's own depth is 1."""
    for place, module in enumerate(modules):
        module.set_modules_to_forward_prefetch(modules[place + 1 : place + 1 + depth])
        before = modules[max(0, place - depth) : place]
        module.set_modules_to_backward_prefetch(before[::-1])


def set_gradient_exchange(model: nn.Module, mesh: RankMesh, *, last: bool) -> None:
    """Say whether the coming backward pass is the last of its step.

    The all-reduce among replicas of shards waits for the last one in any case.
    """
    if not isinstance(model, FSDPModule):
        return
    stage = cast(Transformer, model)
    model.set_requires_gradient_sync(last or not stage.reduces_once)
    # "last" makes FSDP wait for its reductions and forget in which order it ran. Where none is
    # under way the first is free, and the second keeps it from gathering a unit of the pass before.
    # In pipelines other micro-batches are still in flight, and their order is needed.
    alone = stage.reduces_once and mesh.sizes["pp"] == 1
    model.set_is_last_backward(last or alone)
    if mesh.axis("fsdp") is not None:
        model.set_reshard_after_backward(last or not stage.gathers_once)
        if mesh.axis("dp") is not None:
            model.set_requires_all_reduce(last)


def free_gathered(model: nn.Module) -> None:
    """Free what a forward pass without a backward pass left gathered."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
