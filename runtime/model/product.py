"""`x W^T` by the fastest kernel there is: on CPUs oneDNN in float32, everything else as torch does.

torch multiplies float32 matrices on CPUs with MKL, whose AVX-512 kernels run on Intel's processors
only: on AMD's EPYCs oneDNN is 1.2 times (Zen 4) to 2.2 times as fast, and as exact (float32
throughout). torch itself uses oneDNN for bfloat16. For small products its overhead is larger than
the gain.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

SMALL = 1 << 20  # multiplications; the two are equally fast at about 100 x 100 x 100
AVAILABLE = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
onednn_linear = torch.ops.mkldnn._linear_pointwise


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x W^T + b` for `x` `[..., K]` and `weight` `[N, K]`."""
    wanted = (
        AVAILABLE
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() * weight.shape[0] >= SMALL
        and not torch.compiler.is_compiling()
    )
    if not wanted:
        return F.linear(x, weight, bias)
    result: Tensor = Product.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return result


class Product(torch.autograd.Function):
    """backward: `dx = dy W`, `dW = dy^T x` and `db = sum dy`, each only where it is wanted."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return multiply(x, weight, bias)

    @staticmethod
    def backward(
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            multiply(gradient, weight.mT) if wants_x else None,
            weight_gradient(rows, x.flatten(0, -2)) if wants_weight else None,
            rows.sum(0) if wants_bias else None,
        )


def weight_gradient(rows: Tensor, x: Tensor) -> Tensor:
    """`rows^T x` for `rows` `[M, N]` and `x` `[M, K]`.

    oneDNN wants the first factor in order. Put in order is either `rows^T`, or `x^T` and the
    result, whichever is less.
    """
    (num_rows, n), k = rows.shape, x.shape[1]
    if num_rows * n <= k * (num_rows + n):
        return multiply(rows.mT, x.mT)
    return multiply(x.mT, rows.mT).mT.contiguous()


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x W^T + b` without a gradient. oneDNN takes any strides."""
    result: Tensor = onednn_linear(x, weight, bias, "none", [], "")
    # it says that it is a view, of nothing that anybody else holds; FSDP warns of views
    unshared: Tensor = torch.ops.aten._unsafe_view(result, result.shape)
    return unshared
