"""Next-token loss: the sum over tokens, to be divided by the tokens of the global batch.

A sum does not care how tokens are split over ranks and micro-batches; a mean of means does. Under
TP the logits are split over the vocabulary and never gathered: each rank adds up its part of the
softmax (loss parallel). With z the logits of one token, m their maximum and t the target::

    loss = log(sum exp(z - m)) - (z_t - m)        d loss / d z = softmax(z) - [1 at t]

Two all-reduces: one of the maxima, one of the sums and the target's logits together.

Logits are widened to float32 a part at a time, and the softmax is made again in the backward pass:
beside the logits themselves only their gradient is ever whole. With a vocabulary of 128k their
copies in float32 would be the largest tensors of a step.

Shapes: T tokens, P tokens of one part, V vocabulary (this rank's part).
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parctl.runtime.model.parts import parts
from parctl.runtime.parallel.collectives import all_reduce
from parctl.runtime.parallel.mesh import RankMesh
from parctl.runtime.parallel.tensor_parallel import first_of_part

IGNORED = -100  # a target that does not count


def token_loss_sum(
    logits_BSV: Tensor, targets_BS: Tensor, mesh: RankMesh, vocab_size: int
) -> Tensor:
    """`logits_BSV`: the whole vocabulary, or this rank's part of it under TP.

    Equal on all ranks of a TP group.
    """
    tp = mesh.axis("tp")
    first = 0 if tp is None else first_of_part(vocab_size, tp)
    group = None if tp is None else tp.get_group()
    loss: Tensor = CrossEntropy.apply(  # type: ignore[no-untyped-call]
        logits_BSV.flatten(0, -2), targets_BS.flatten(), first, group
    )
    return loss


class CrossEntropy(torch.autograd.Function):
    """forward: under TP two all-reduces of T numbers, backward: none."""

    @staticmethod
    def forward(
        ctx: Any, logits_TV: Tensor, targets_T: Tensor, first: int, group: dist.ProcessGroup | None
    ) -> Tensor:
        dtype = torch.promote_types(logits_TV.dtype, torch.float32)
        highest_T = logits_TV.amax(dim=-1).to(dtype)
        if group is not None:
            highest_T = all_reduce(highest_T, group, "max")
        columns_T = targets_T - first
        own_T = (columns_T >= 0) & (columns_T < logits_TV.shape[-1])
        columns_T1 = columns_T.masked_fill(~own_T, 0).unsqueeze(-1)
        picked_T = (logits_TV.gather(-1, columns_T1).squeeze(-1) - highest_T) * own_T
        sums_T = torch.empty_like(highest_T)
        for part in parts(logits_TV):
            shifted_PV = logits_TV[part] - highest_T[part].unsqueeze(-1)
            sums_T[part] = shifted_PV.exp_().sum(dim=-1)
        if group is not None:
            sums_T, picked_T = all_reduce(torch.stack((sums_T, picked_T)), group).unbind()
        logs_T, counted_T = sums_T.log(), targets_T != IGNORED
        ctx.save_for_backward(logits_TV, highest_T + logs_T, columns_T1, own_T, counted_T)
        return ((logs_T - picked_T) * counted_T).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        logits_TV, log_sums_T, columns_T1, own_T, counted_T = ctx.saved_tensors
        hits_T1 = -own_T.to(log_sums_T.dtype).unsqueeze(-1)
        scales_T1 = (counted_T * gradients[0]).unsqueeze(-1)
        gradient_TV = torch.empty_like(logits_TV)
        for part in parts(logits_TV):
            softmax_PV = (logits_TV[part] - log_sums_T[part].unsqueeze(-1)).exp_()
            softmax_PV.scatter_add_(-1, columns_T1[part], hits_T1[part])
            torch.mul(softmax_PV, scales_T1[part], out=gradient_TV[part])
        return gradient_TV, None, None, None
