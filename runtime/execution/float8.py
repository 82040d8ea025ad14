"""Products of blocks in float8 (2209.05433): twice the rate of bfloat16 where the device has it.

Operands are scaled by their largest element, so that it just fits, rounded to 8 bits, multiplied
into bfloat16, and scaled back. Values and weights are e4m3 (3 bits of fraction), gradients e5m2
(wider range). What the backward pass keeps is 8 bits wide too. Embedding, head, norms, attention
and all sums stay as they are in bf16.
"""

from typing import Any

import torch
from torch import Tensor

from parctl.recipes.spec import Precision
from parctl.runtime.model.linear import Linear
from parctl.runtime.model.transformer import Transformer

VALUES, GRADIENTS = torch.float8_e4m3fn, torch.float8_e5m2


def apply(model: Transformer, precision: Precision) -> None:
    """Let every block multiply in float8, in place."""
    if precision != "fp8":
        return
    for stack in model.stacks():
        for module in stack.modules():
            if isinstance(module, Linear):
                module.multiply = product_in_float8


def product_in_float8(x: Tensor, weight: Tensor) -> Tensor:
    """`x W^T` for `x` `[..., K]` and `weight` `[N, K]`; K, N and the rows are multiples of 16."""
    result: Tensor = Float8Product.apply(x.flatten(0, -2), weight)  # type: ignore[no-untyped-call]
    return result.unflatten(0, x.shape[:-1])  # type: ignore[no-untyped-call, no-any-return]


class Float8Product(torch.autograd.Function):
    """backward: `dx = dy W`, `dW = dy^T x`, both in float8."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x8, weight8 = scaled(x, VALUES), scaled(weight, VALUES)
        ctx.save_for_backward(*x8, *weight8)
        ctx.dtype = x.dtype
        return multiply(x8, (weight8[0].t(), weight8[1]), x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, x_scale, weight, weight_scale = ctx.saved_tensors
        gradient, scale = scaled(gradients[0], GRADIENTS)
        dx = multiply((gradient, scale), (by_columns(weight), weight_scale), ctx.dtype)
        dw = multiply((gradient.t().contiguous(), scale), (by_columns(x), x_scale), ctx.dtype)
        return dx, dw


def scaled(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return `x` in 8 bits, and what it is to be multiplied by to be `x` again."""
    scale = x.abs().amax().float().clamp(min=1e-12) / torch.finfo(dtype).max
    return (x.float() / scale).to(dtype), scale


def by_columns(x: Tensor) -> Tensor:
    """The same matrix, stored by columns as the kernel wants its right operand."""
    return x.t().contiguous().t()


def multiply(
    left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor], dtype: torch.dtype
) -> Tensor:
    result: Tensor = torch._scaled_mm(
        left[0], right[0], scale_a=left[1], scale_b=right[1], out_dtype=dtype
    )
    return result
