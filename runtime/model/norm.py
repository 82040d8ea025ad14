"""Normalisation over the last dim: RMSNorm (1910.07467), or LayerNorm (1607.06450)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from parctl.recipes.spec import ModelSpec
from parctl.runtime.model.linear import local


class RmsNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size))

    def forward(self, x: Tensor) -> Tensor:
        weight = local(self.weight)
        return F.rms_norm(x, weight.shape, weight, self.eps)


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
