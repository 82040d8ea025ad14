"""Attention to short sequences in bfloat16 on CPUs, by matrix products of many heads at once.

torch's fused kernel for CPUs multiplies small blocks, in bfloat16 no faster than in float32, while
oneDNN multiplies bfloat16 matrices several times as fast. Causal attention takes QUERIES queries at
a time, with those keys that any of them sees, so that about half of the products is left out.
Scores are made again in the backward pass, so nothing of their size is kept. They are rounded to
bfloat16, as by most attention that is not fused; the softmax adds up in float32::

    P = softmax(scale Q K^T)     O = P V
    dV = P^T dO    dP = dO V^T    dS = P (dP - sum(dP P))    dQ = scale dS K    dK = scale dS^T Q

It is registered with torch under one name, as ring attention is: selective recomputation keeps its
result.

Shapes: B batch, N heads, S queries, T keys, H head_dim, X = B N; Q queries of one part, and U keys
that they see.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

LONGEST = 512  # tokens
QUERIES = 128  # of one part
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
    """`[B, N, S, H]` of queries and as many keys and values, all of one width.

    The result, and the gradients, lie in memory as the queries, keys and values do.
    """
    out_BNSH = torch.empty_like(q)
    for part, seen in parts(q.shape[2], k.shape[2], causal):
        first = part.start if causal else None
        weights_XQU = weigh(heads(q, part), heads(k, seen), first, scale)
        out_XQH = torch.bmm(weights_XQU, heads(v, seen))
        out_BNSH[:, :, part] = apart(out_XQH, q)
    return out_BNSH


@torch.library.custom_op("parctl::short_attention_backward", mutates_args=())
def short_attention_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over parts are made in float32."""
    dq_BNSH = torch.empty_like(q)
    dk_BNTH, dv_BNTH = (torch.zeros_like(x, dtype=torch.float32) for x in (k, v))
    for part, seen in parts(q.shape[2], k.shape[2], causal):
        q_XQH, gradient_XQH = heads(q, part), heads(gradient, part)
        k_XUH, v_XUH = heads(k, seen), heads(v, seen)
        weights_XQU = weigh(q_XQH, k_XUH, part.start if causal else None, scale)
        d_weights_XQU = torch.bmm(gradient_XQH, v_XUH.mT)
        d_scores_XQU = torch._softmax_backward_data(
            d_weights_XQU, weights_XQU, -1, weights_XQU.dtype
        )
        dq_BNSH[:, :, part] = apart(torch.bmm(d_scores_XQU, k_XUH), q)
        dk_BNTH[:, :, seen] += apart(torch.bmm(d_scores_XQU.mT, q_XQH), k)
        dv_BNTH[:, :, seen] += apart(torch.bmm(weights_XQU.mT, gradient_XQH), v)
    return dq_BNSH.mul_(scale), dk_BNTH.mul_(scale).to(k.dtype), dv_BNTH.to(v.dtype)


def parts(num_queries: int, num_keys: int, causal: bool) -> Iterator[tuple[slice, slice]]:
    """Queries that are multiplied together, and the keys that some of them see."""
    size = QUERIES if causal else num_queries
    for begin in range(0, num_queries, size):
        end = min(begin + size, num_queries)
        yield slice(begin, end), slice(min(end, num_keys) if causal else num_keys)


def heads(x_BNSH: Tensor, span: slice) -> Tensor:
    """Some tokens of every head, as a batch of matrices: `[X, Q, H]` or `[X, U, H]`."""
    return x_BNSH[:, :, span].flatten(0, 1)


def apart(x_XQH: Tensor, whole_BNSH: Tensor) -> Tensor:
    """The way back: `[B, N, Q, H]`."""
    return x_XQH.view(*whole_BNSH.shape[:2], *x_XQH.shape[1:])


def weigh(q_XQH: Tensor, k_XUH: Tensor, first: int | None, scale: float) -> Tensor:
    """Return the weight of every key, `[X, Q, U]`. If causal, the first query is query `first`."""
    if first is None:
        scores_XQU = torch.bmm(q_XQH, k_XUH.mT).mul_(scale)
    else:
        shape = (q_XQH.shape[1], k_XUH.shape[1])
        unseen_QU = torch.full(shape, -math.inf, dtype=q_XQH.dtype).triu(first + 1)
        scores_XQU = torch.baddbmm(unseen_QU, q_XQH, k_XUH.mT, alpha=scale)
    return torch.softmax(scores_XQU, dim=-1)


@short_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
    return torch.empty_like(q)


@short_attention_backward.register_fake
def _(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, k, v, ctx.causal, ctx.scale = inputs
    ctx.save_for_backward(q, k, v)


def differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v = ctx.saved_tensors
    return *short_attention_backward(gradient, q, k, v, ctx.causal, ctx.scale), None, None


short_attention.register_autograd(differentiate, setup_context=keep)
OPERATION = torch.ops.parctl.short_attention.default  # as dispatch modes see it
