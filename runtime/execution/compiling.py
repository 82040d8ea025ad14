"""torch.compile, one block at a time: blocks are alike, so one compilation serves all of a kind.

Compiled is what computes, not what is wrapped around it: FSDP's hooks and, where a block keeps only
its input, recomputation stay outside. Selective recomputation is decided inside the compiled graph;
there the results of all matmuls are kept.
"""

import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper

from parctl.recipes.spec import TrainSpec
from parctl.runtime.model.transformer import Transformer
from parctl.runtime.parallel.shared_memory import shares_memory


def apply(model: Transformer, train: TrainSpec) -> None:
    """Compile every block in place. Names of parameters do not change."""
    if not train.compile:
        return
    torch.compiler.assume_constant_result(shares_memory)  # type: ignore[no-untyped-call]
    layers = [item for stack in model.stacks() for item in stack.items()]
    for layer, block in layers:
        outside = train.recompute_of(int(layer)) in ("full", "partitioned")
        if outside and isinstance(block, CheckpointWrapper):
            block = block._checkpoint_wrapped_module
        block.forward = torch.compile(block.forward, dynamic=False)
