"""Relative positions (T5, 1910.10683, section 2.1): what a head adds to the product of two tokens.

The bias depends on how far the key is from the query, in buckets: near distances have one each,
farther ones share them by their logarithm, and all beyond MAX_DISTANCE share the last. A decoder
looks back only, so all its buckets are for keys behind the query; in an encoder half of them are
for keys ahead. One table serves all layers of a stack. T5 does not divide the products by
sqrt(head_dim): its attention uses them as they are.

Shapes: B batch, N heads (this rank's under tp), Q queries, K keys.
"""

import math

import torch
from torch import Tensor, nn

from parctl.recipes.parameters import RELATIVE_BUCKETS
from parctl.recipes.spec import ModelSpec
from parctl.runtime.model.linear import local

MAX_DISTANCE = 128  # tokens, as in every published T5


class RelativeBias(nn.Module):
    """A table `[RELATIVE_BUCKETS, N]`, split over tp by heads."""

    def __init__(self, model: ModelSpec, *, causal: bool) -> None:
        super().__init__()
        self._causal = causal
        self.weight = nn.Parameter(torch.empty(RELATIVE_BUCKETS, model.num_heads))

    def forward(self, num_tokens: int) -> Tensor:
        """Return `[1, N, Q, K]` for a whole sequence, minus infinity where a key is not seen."""
        weight = local(self.weight)
        places = torch.arange(num_tokens, device=weight.device)
        distances_QK = places - places.unsqueeze(1)
        bias_NQK = weight[buckets(distances_QK, causal=self._causal)].permute(2, 0, 1)
        if self._causal:
            bias_NQK = bias_NQK.masked_fill(distances_QK > 0, -math.inf)
        return bias_NQK.unsqueeze(0)


def buckets(distances: Tensor, *, causal: bool) -> Tensor:
    """Return the bucket of every distance, key minus query.

    >>> buckets(torch.tensor([0, -1, -16, -127, -1000]), causal=True).tolist()
    [0, 1, 16, 31, 31]
    >>> buckets(torch.tensor([-1, 0, 1, 1000]), causal=False).tolist()
    [1, 0, 17, 31]
    """
    count = RELATIVE_BUCKETS if causal else RELATIVE_BUCKETS // 2
    offset = torch.zeros_like(distances) if causal else (distances > 0) * count
    length = (-distances).clamp(min=0) if causal else distances.abs()
    near = count // 2  # buckets of one distance each
    # float32, as published weights were trained with: float64 moves borders by one
    ratio = torch.log(length.clamp(min=1).float() / near) / math.log(MAX_DISTANCE / near)
    far = near + (ratio * (count - near)).long()
    return offset + torch.where(length < near, length, far.clamp(max=count - 1))
