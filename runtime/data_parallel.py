"""Data parallelism: replicas (DDP), shards (ZeRO-2, ZeRO-3 as FSDP2), replicas of shards (HSDP).

Gradients are summed, never averaged: the loss is already divided by the tokens of the global batch,
so that the same division is right under accumulation and every mix of axes.

    replicas  backward: all-reduce
    shards    forward: all-gather, backward: all-gather (not for ZeRO-2), reduce-scatter
    both      the shards' exchanges inside a replica, then all-reduce of the shards
"""

from typing import Any

import torch
from torch import nn
from torch.distributed._composable.replicate_with_fsdp import replicate
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from parctl.recipes.spec import Precision
from parctl.runtime.mesh import RankMesh
from parctl.runtime.transformer import Transformer


def apply(model: Transformer, mesh: RankMesh, *, precision: Precision, zero_stage: int) -> None:
    """Wrap blocks, embedding, head and the rest, in place.

    One data rank needs no wrapper, except to compute in bfloat16.
    """
    data = mesh.axis("dp", "fsdp")
    if data is None or (data.size() == 1 and precision != "bf16"):
        return
    policy = mixed_precision(precision)
    for unit, freed in units(model):
        if mesh.axis("fsdp") is None:
            replicate(unit, mesh=data, mp_policy=policy)
        else:
            fully_shard(
                unit,
                mesh=data,
                mp_policy=policy,
                reshard_after_forward=zero_stage == 3 and freed,
            )
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def mixed_precision(precision: Precision) -> MixedPrecisionPolicy:
    """bf16: compute in bfloat16 from float32 weights, and add gradients up in float32."""
    if precision == "bf16":
        return MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    return MixedPrecisionPolicy(cast_forward_inputs=False)


def units(model: Transformer) -> list[tuple[Any, bool]]:
    """What is gathered at once, innermost first, and whether it is freed between the passes.

    The backward pass begins where the forward pass ends, so freeing the head would be in vain. A
    head tied to the embedding must be gathered together with it: both stay in the model's own unit.
    """
    parts: list[tuple[Any, bool]] = [(block, True) for block in model.blocks.values()]
    if not model.model.tied_embeddings:
        if model.embedding is not None:
            parts.append((model.embedding, True))
        if model.head is not None:
            parts.append(([model.final_norm, model.head], False))
    return [*parts, (model, False)]


def set_gradient_exchange(model: nn.Module, mesh: RankMesh, *, last: bool) -> None:
    """Say whether the coming backward pass is the last of its step.

    Replicas exchange gradients in the last one only. Shards reduce-scatter in each, because whole
    gradients kept between micro-batches would cost the memory that sharding saved.
    """
    if not isinstance(model, FSDPModule):
        return
    model.set_is_last_backward(last)
    if mesh.axis("fsdp") is None:
        model.set_requires_gradient_sync(last)
    elif mesh.axis("dp") is not None:
        model.set_requires_all_reduce(last)


def free_gathered(model: nn.Module) -> None:
    """Free what a forward pass without a backward pass left gathered."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
