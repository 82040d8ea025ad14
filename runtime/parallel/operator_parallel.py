"""Operator parallelism (1807.05358): independent branches of a block on different ranks.

The branches of a parallel block, attention and MLP, read one norm's output and are added up. Each
rank of an `operator` group holds, and runs, one of them; everything else is on all of them alike::

    x --norm--copy--> attention (rank 0)  --reduce--> + x
                 `--> MLP       (rank 1)  --'

    copy      forward: nothing,     backward: all-reduce of the gradient of the norm's output
    reduce    forward: all-reduce,  backward: nothing

So all gradients outside the branches are whole on every rank, and those of a branch are where the
branch is: nothing is left to be added up. In checkpoints a branch has the name it always has.
"""

from functools import partial

from torch.distributed.device_mesh import DeviceMesh

from parctl.runtime.model.transformer import ParallelBlock, Transformer
from parctl.runtime.parallel import shared_memory
from parctl.runtime.parallel.collectives import Copy, Reduce
from parctl.runtime.parallel.tensor_parallel import call

ATTENTION = ("attention",)
MLP = ("feed_forward", "moe")
BRANCHES = (ATTENTION, MLP)


def apply(model: Transformer, operator: DeviceMesh) -> None:
    """Leave this rank its branches, in place, on the meta device."""
    group, own = operator.get_group(), operator.get_local_rank()
    assert operator.size() == len(BRANCHES), operator
    shared_memory.connect(operator)
    for block in model.blocks.values():
        assert isinstance(block, ParallelBlock)
        block.enter, block.leave = partial(call, Copy, group), partial(call, Reduce, group)
        for rank, names in enumerate(BRANCHES):
            for name in names:
                if rank != own:
                    setattr(block, name, None)


def is_of_a_branch(name: str) -> bool:
    """Whether a parameter belongs to one branch, so that one rank of a group holds it.

    >>> is_of_a_branch("blocks.0.attention.wq.weight"), is_of_a_branch("final_norm.weight")
    (True, False)
    """
    return any(f".{part}." in name for names in BRANCHES for part in names)
