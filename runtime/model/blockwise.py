"""Attention to one block of keys, with what is needed to merge blocks: the fused kernels of torch.

With s the scaled products of a query and its block, a kernel returns `out`, the mean of the values
weighted by exp(s), and `lse`, the logarithm of the sum of exp(s). Two blocks merge exactly::

    lse = log(exp(lse_1) + exp(lse_2))      out = exp(lse_1 - lse) out_1 + exp(lse_2 - lse) out_2

Given `out` and `lse` of all keys, the kernels' backward passes yield each block's part of the
gradient (2310.01889).

Per device: the CPU's flash kernel; on CUDA flash for half types without a mask, the
memory-efficient kernel otherwise, and plain matmuls in float64, which no fused kernel there takes.

Shapes: B batch, N heads, Q queries, L keys, H head_dim; heads are equal in number on both sides,
and values as wide as keys.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

aten = torch.ops.aten
LSE_ALIGNMENT = 32  # the memory-efficient kernel rounds rows of `lse` up to a multiple of this


def forward(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, causal: bool, visible: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return `out` `[B, N, Q, H]` and `lse` `[B, N, Q]`, both in float32 at least.

    `causal` needs as many queries as keys. `visible` `[B, 1, Q, L]` replaces it; a query that sees
    no key gets zeros and minus infinity.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    bias = None if visible is None else to_bias(visible, q.dtype)
    if q.device.type == "cpu":
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, attn_mask=bias, scale=scale
        )
    elif q.dtype == torch.float64:
        out, lse = plain_forward(q, k, v, scale, causal, bias)
    elif bias is None and q.dtype != torch.float32:
        out, lse = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, scale=scale)[:2]
    else:
        out, lse = aten._scaled_dot_product_efficient_attention(
            q, k, v, bias, True, 0.0, causal, scale=scale
        )[:2]
        lse = lse[..., : q.shape[2]]
    out, lse = out.to(wide), lse.to(wide)
    if visible is not None:
        blind = ~visible.any(dim=-1)
        out = out.masked_fill(blind.unsqueeze(-1), 0.0)
        lse = lse.masked_fill(blind, -math.inf)
    return out, lse


def backward(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    *,
    scale: float,
    causal: bool,
    visible: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return this block's part of the gradients of q, k and v.

    `out` (in the type of q) and `lse` are those over all keys.
    """
    bias = None if visible is None else to_bias(visible, q.dtype)
    if q.device.type == "cpu":
        dq, dk, dv = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            gradient, q, k, v, out, lse, 0.0, causal, attn_mask=bias, scale=scale
        )
    elif q.dtype == torch.float64:
        dq, dk, dv = plain_backward(gradient, q, k, v, out, lse, scale, causal, bias)
    elif bias is None and q.dtype != torch.float32:
        none = torch.empty(0, dtype=torch.uint64, device=q.device)  # no dropout, so no random state
        dq, dk, dv = aten._scaled_dot_product_flash_attention_backward(
            gradient, q, k, v, out, lse, None, None, q.shape[2], k.shape[2], 0.0, causal,
            none, none, scale=scale,
        )  # fmt: skip
    else:
        missing = -lse.shape[-1] % LSE_ALIGNMENT
        none = torch.empty((), dtype=torch.int64, device=q.device)
        dq, dk, dv, _ = aten._scaled_dot_product_efficient_attention_backward(
            gradient, q, k, v, bias, out, F.pad(lse, (0, missing), value=math.inf), none, none,
            0.0, [True, True, True, False], causal, scale=scale,
        )  # fmt: skip
    return dq, dk, dv


def merge(out: Tensor, lse: Tensor, more_out: Tensor, more_lse: Tensor) -> None:
    """Merge another block into `out` and `lse`, in place. `lse` must be finite."""
    both = torch.logaddexp(lse, more_lse)
    out.mul_((lse - both).exp().unsqueeze(-1)).add_(
        more_out * (more_lse - both).exp().unsqueeze(-1)
    )
    lse.copy_(both)


def to_bias(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the products: 0 or minus infinity, its rows aligned to 16 elements."""
    missing = -visible.shape[-1] % 16
    bias = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    bias = F.pad(bias.masked_fill_(~visible, -math.inf), (0, missing))
    return bias[..., : visible.shape[-1]]


def plain_scores(q: Tensor, k: Tensor, scale: float, causal: bool, bias: Tensor | None) -> Tensor:
    scores = q @ k.mT * scale
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(future, -math.inf)
    return scores if bias is None else scores + bias


def plain_forward(
    q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    scores = plain_scores(q, k, scale, causal, bias)
    lse = scores.logsumexp(dim=-1)
    return (scores - lse.unsqueeze(-1)).exp() @ v, lse


def plain_backward(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    causal: bool,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    weights = (plain_scores(q, k, scale, causal, bias) - lse.unsqueeze(-1)).exp()
    shift = (gradient * out).sum(dim=-1, keepdim=True)
    d_scores = weights * (gradient @ v.mT - shift) * scale
    return d_scores @ k, d_scores.mT @ q, weights.mT @ gradient
