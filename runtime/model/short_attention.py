"""Attention to short sequences in bfloat16 on CPUs, by matrix products of whole sequences.

torch's fused kernel for CPUs multiplies small blocks, in bfloat16 no faster than in float32, while
oneDNN multiplies bfloat16 matrices several times as fast. So up to LONGEST tokens, where the
scores of a micro-batch are small, forward and backward together take half of the fused kernel's
time (measured at 256 and 512 tokens; at 1,024 they are equal). Scores are made again in the
backward pass, so nothing of their size is kept. They are rounded to bfloat16, as by most attention
that is not fused; the softmax adds up in float32::

    P = softmax(scale Q K^T)     O = P V
    dV = P^T dO    dP = dO V^T    dS = P (dP - sum(dP P))    dQ = scale dS K    dK = scale dS^T Q

It is registered with torch under one name, as ring attention is: selective recomputation keeps its
result.

Shapes: B batch, N heads, S queries, T keys, H head_dim, X = B N.
"""

import math
from typing import Any

import torch
from torch import Tensor

LONGEST = 512  # tokens
AVAILABLE = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def is_faster(q_BNSH: Tensor, k_BNTH: Tensor) -> bool:
    """Whether to take these products in place of the fused kernel."""
    return (
        AVAILABLE
        and q_BNSH.device.type == "cpu"
        and q_BNSH.dtype == torch.bfloat16
        and max(q_BNSH.shape[2], k_BNTH.shape[2]) <= LONGEST
        and not torch.compiler.is_compiling()
    )


@torch.library.custom_op("parctl::short_attention", mutates_args=())
def short_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
    """`[B, N, S, H]` of queries and as many keys and values, all of one width."""
    weights_XST = weigh(q.flatten(0, 1), k.flatten(0, 1), causal, scale)
    return torch.bmm(weights_XST, v.flatten(0, 1)).view(q.shape)


@torch.library.custom_op("parctl::short_attention_backward", mutates_args=())
def short_attention_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    gradient_XSH, q_XSH, k_XTH, v_XTH = (x.flatten(0, 1) for x in (gradient, q, k, v))
    weights_XST = weigh(q_XSH, k_XTH, causal, scale)
    dv = torch.bmm(weights_XST.mT, gradient_XSH)
    d_weights_XST = torch.bmm(gradient_XSH, v_XTH.mT)
    d_scores_XST = torch._softmax_backward_data(d_weights_XST, weights_XST, -1, weights_XST.dtype)
    dq = torch.bmm(d_scores_XST, k_XTH).mul_(scale)
    dk = torch.bmm(d_scores_XST.mT, q_XSH).mul_(scale)
    return dq.view(q.shape), dk.view(k.shape), dv.view(v.shape)


def weigh(q_XSH: Tensor, k_XTH: Tensor, causal: bool, scale: float) -> Tensor:
    """Return the weight of every key, `[X, S, T]`."""
    shape = (q_XSH.shape[1], k_XTH.shape[1])
    unseen_ST = torch.full(shape, -math.inf, dtype=q_XSH.dtype).triu(1) if causal else None
    if unseen_ST is None:
        scores_XST = torch.bmm(q_XSH, k_XTH.mT).mul_(scale)
    else:
        scores_XST = torch.baddbmm(unseen_ST, q_XSH, k_XTH.mT, alpha=scale)
    return torch.softmax(scores_XST, dim=-1)


@short_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
    return q.new_empty(q.shape)


@short_attention_backward.register_fake
def _(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, k, v, ctx.causal, ctx.scale = inputs
    ctx.save_for_backward(q, k, v)


def differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v = ctx.saved_tensors
    return *short_attention_backward(gradient, q, k, v, ctx.causal, ctx.scale), None, None


short_attention.register_autograd(differentiate, setup_context=keep)
OPERATION = torch.ops.parctl.short_attention.default  # as dispatch modes see it
