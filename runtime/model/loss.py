"""Next-token loss: the sum over tokens, to be divided by the tokens of the global batch.

A sum does not care how tokens are split over ranks and micro-batches; a mean of means does. Under
TP the logits are split over the vocabulary and never gathered: each rank adds up its part of the
softmax (loss parallel). With z the logits of one token, m their maximum and t the target::

    loss = log(sum exp(z - m)) - (z_t - m)        d loss / d z = softmax(z) - [1 at t]

Two all-reduces: one of the maxima, one of the sums and the target's logits together.

Shapes: T tokens, V vocabulary (this rank's part).
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from parctl.runtime.parallel.collectives import all_reduce
from parctl.runtime.parallel.mesh import RankMesh
from parctl.runtime.parallel.tensor_parallel import first_of_part

IGNORED = -100  # a target that does not count


def token_loss_sum(
    logits_BSV: Tensor, targets_BS: Tensor, mesh: RankMesh, vocab_size: int
) -> Tensor:
    """Sum the cross entropy of this rank's tokens (of images `[B]`), in float32 at least.

    Equal on all ranks of a TP group.
    """
    dtype = torch.promote_types(logits_BSV.dtype, torch.float32)
    logits_TV, targets_T = logits_BSV.flatten(0, -2).to(dtype), targets_BS.flatten()
    tp = mesh.axis("tp")
    if tp is None:
        return F.cross_entropy(logits_TV, targets_T, reduction="sum", ignore_index=IGNORED)
    first = first_of_part(vocab_size, tp)
    loss: Tensor = SplitCrossEntropy.apply(  # type: ignore[no-untyped-call]
        logits_TV, targets_T, first, tp.get_group()
    )
    return loss


class SplitCrossEntropy(torch.autograd.Function):
    """forward: two all-reduces of T numbers, backward: none."""

    @staticmethod
    def forward(
        ctx: Any, logits_TV: Tensor, targets_T: Tensor, first: int, group: dist.ProcessGroup
    ) -> Tensor:
        highest_T = all_reduce(logits_TV.amax(dim=-1), group, "max")
        shifted_TV = logits_TV - highest_T.unsqueeze(-1)
        columns_T = targets_T - first
        own_T = (columns_T >= 0) & (columns_T < logits_TV.shape[-1])
        columns_T = columns_T.masked_fill(~own_T, 0)
        picked_T = shifted_TV.gather(-1, columns_T.unsqueeze(-1)).squeeze(-1) * own_T
        softmax_TV = shifted_TV.exp_()
        sums_T, picked_T = all_reduce(
            torch.stack((softmax_TV.sum(dim=-1), picked_T)), group
        ).unbind()
        softmax_TV /= sums_T.unsqueeze(-1)
        counted_T = targets_T != IGNORED
        ctx.save_for_backward(softmax_TV, columns_T, own_T, counted_T)
        return ((sums_T.log() - picked_T) * counted_T).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        softmax_TV, columns_T, own_T, counted_T = ctx.saved_tensors
        hits_T1 = -own_T.to(softmax_TV.dtype).unsqueeze(-1)
        gradient_TV = softmax_TV.scatter_add(-1, columns_T.unsqueeze(-1), hits_T1)
        return gradient_TV * (counted_T * gradients[0]).unsqueeze(-1), None, None, None
