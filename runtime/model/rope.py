"""Rotary position embedding (2104.09864), with the frequency scaling of Llama 3.1 (2407.21783).

Element i of a head's first half and element i of its second half form one plane, rotated by
`position * theta^(-2i/R)`. This pairing is Hugging Face's, so weights move over without permuting.

Shapes: B batch, S sequence, N heads, H head_dim, R rotated part of H.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from parctl.recipes.spec import ModelSpec

Rotation = tuple[Tensor, Tensor]  # cosines and sines


def frequencies(model: ModelSpec) -> Tensor:
    """Return the R/2 angular frequencies in float64, scaled when the model says so."""
    rotated = int(model.head_dim * model.rope_fraction)
    if model.mla is not None:
        rotated = model.mla.qk_rope_head_dim
    exponents = torch.arange(0, rotated, 2, dtype=torch.float64) / rotated
    plain = 1.0 / model.rope_theta**exponents
    return plain if model.rope_scaling is None else scale(plain, model.rope_scaling)


def scale(plain: Tensor, scaling: Mapping[str, float]) -> Tensor:
    """Stretch slow waves by `factor`, keep fast ones, and blend between.

    A wave is slow when the original context holds fewer than `low_freq_factor` of its periods, fast
    when it holds more than `high_freq_factor`.
    """
    periods = scaling["original_max_seq_len"] * plain / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    keep = ((periods - low) / (high - low)).clamp(0, 1)
    return keep * plain + (1 - keep) * plain / scaling["factor"]


def rotation(model: ModelSpec, positions_S: Tensor, dtype: torch.dtype) -> Rotation:
    """Return cosines and sines `[S, 1, R/2]` of these positions in the sequence.

    Angles are made in float64, because float32 is 0.06 radian off at position 1,000,000.
    """
    frequencies_R = frequencies(model).to(positions_S.device)
    angles = torch.outer(positions_S.double(), frequencies_R).unsqueeze(1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x_BSNH: Tensor, cos_S1R: Tensor, sin_S1R: Tensor) -> Tensor:
    """Rotate the first R elements of every head, in the precision of the cosines."""
    half = cos_S1R.shape[-1]
    first, second, rest = torch.split(x_BSNH, [half, half, x_BSNH.shape[-1] - 2 * half], dim=-1)
    turned = (first * cos_S1R - second * sin_S1R, second * cos_S1R + first * sin_S1R)
    return torch.cat((*(half.to(x_BSNH.dtype) for half in turned), rest), dim=-1)
