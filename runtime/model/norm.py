"""Normalisation over the last dim: RMSNorm (1910.07467), or LayerNorm (1607.06450).

torch has one kernel for RMSNorm on GPUs. On CPUs it makes whole copies in float32, which it keeps
for the backward pass too; `CachedRmsNorm` takes as many rows at a time as a cache holds, in about
half the time. With r = 1 / sqrt(mean x^2 + eps) and n = r x, all in float32::

    y = n w        dw = sum_rows dy n        dx = r (dy w - n mean(dy w n))

Shapes: T tokens, P tokens of one part, D dim.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from parctl.recipes.spec import ModelSpec
from parctl.runtime.model.linear import local
from parctl.runtime.model.parts import parts


class RmsNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size))

    def forward(self, x: Tensor) -> Tensor:
        weight = local(self.weight)
        if x.device.type != "cpu" or torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return F.rms_norm(x, weight.shape, weight, self.eps)
        normed: Tensor = CachedRmsNorm.apply(  # type: ignore[no-untyped-call]
            x, weight, self.eps
        )
        return normed


class CachedRmsNorm(torch.autograd.Function):
    """Keeps its input, and a number per row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        x_TD = x.flatten(0, -2)
        dtype = torch.promote_types(x.dtype, torch.float32)
        out = x.new_empty(x.shape)  # not a view in the end: FSDP warns of those
        out_TD, scales_T1 = out.flatten(0, -2), x.new_empty(len(x_TD), 1, dtype=dtype)
        wide_D = weight_D.to(dtype)
        for part in parts(x_TD):
            x_PD = x_TD[part].to(dtype)
            squares_P1 = torch.linalg.vector_norm(x_PD, dim=-1, keepdim=True).square_()
            torch.rsqrt(squares_P1.div_(x.shape[-1]).add_(eps), out=scales_T1[part])
            torch.mul(x_PD * scales_T1[part], wide_D, out=out_TD[part])
        ctx.save_for_backward(x, weight_D, scales_T1)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight_D, scales_T1 = ctx.saved_tensors
        x_TD, gradient_TD = x.flatten(0, -2), gradients[0].flatten(0, -2)
        dx, dw_D = x.new_empty(x.shape), torch.zeros_like(weight_D, dtype=scales_T1.dtype)
        dx_TD = dx.flatten(0, -2)
        wide_D = weight_D.to(scales_T1.dtype)
        for part in parts(x_TD):
            normed_PD = x_TD[part] * scales_T1[part]
            gradient_PD = gradient_TD[part].to(scales_T1.dtype)
            products_PD = gradient_PD * normed_PD
            dw_D += products_PD.sum(dim=0)
            means_P1 = torch.mv(products_PD, wide_D).div_(x.shape[-1]).unsqueeze(-1)
            out_PD = (gradient_PD * wide_D).addcmul_(normed_PD, means_P1, value=-1)
            torch.mul(out_PD, scales_T1[part], out=dx_TD[part])
        return dx, dw_D.to(weight_D.dtype), None


class Norm(RmsNorm):
    """The norm of the stream, as the model says."""

    def __init__(self, model: ModelSpec) -> None:
        super().__init__(model.dim, model.norm_eps)
        self.bias = nn.Parameter(torch.empty(model.dim)) if model.norm == "layernorm" else None

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is None:
            return super().forward(x)
        weight = local(self.weight)
        return F.layer_norm(x, weight.shape, weight, local(self.bias), self.eps)
