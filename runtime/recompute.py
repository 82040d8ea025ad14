"""Recomputation of activations (1604.06174): keep less, and compute it again in the backward pass.

- `full`: a block keeps its input only.
- `selective`: a block keeps the results of matmuls, attention and reductions over tp, which are
  dear to repeat, and recomputes norms, rotary embedding, activations, casts and the gathering of
  tokens under SP, which are cheap for the memory they free.
"""

from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from parctl.recipes.spec import Recompute
from parctl.runtime.transformer import Transformer

WRAPPER_PREFIX = "_checkpoint_wrapped_module."

aten, collectives = torch.ops.aten, torch.ops._c10d_functional
DEAR = frozenset(
    {
        aten.mm.default,
        aten.addmm.default,
        aten.bmm.default,
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
        collectives.reduce_scatter_tensor.default,
        collectives.all_reduce.default,
    }
)


def keep_dear(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    dear = operation in DEAR
    return CheckpointPolicy.MUST_SAVE if dear else CheckpointPolicy.PREFER_RECOMPUTE


def selective_contexts() -> Any:
    return create_selective_checkpoint_contexts(keep_dear)  # type: ignore[no-untyped-call]


def apply(model: Transformer, recompute: Recompute) -> None:
    """Wrap every block.

    Parameter names gain WRAPPER_PREFIX, which `canonical_name` takes off again.
    """
    if recompute == "none":
        return
    for layer, block in model.blocks.items():
        if recompute == "selective":
            wrapped: nn.Module = checkpoint_wrapper(block, context_fn=selective_contexts)
        else:
            wrapped = checkpoint_wrapper(block)
        model.blocks[layer] = wrapped


def canonical_name(name: str) -> str:
    """Return the name of a parameter in the plain model, which is its name in checkpoints.

    >>> canonical_name("blocks.0._checkpoint_wrapped_module.attention.wq.weight")
    'blocks.0.attention.wq.weight'
    """
    return name.replace(WRAPPER_PREFIX, "")
