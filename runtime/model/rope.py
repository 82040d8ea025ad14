"""Rotary position embedding (2104.09864), stretched as Llama 3.1 (2407.21783) or YaRN does it.

Element i of a head's first half and element i of its second half form one plane, rotated by
`position * theta^(-2i/R)`. This pairing is Hugging Face's, so weights move over without permuting.

Shapes: B batch, S sequence, N heads, H head_dim, R rotated part of H.
"""

import math
from collections.abc import Mapping
from typing import Any

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
    scaling = model.rope_scaling
    if scaling is None:
        return plain
    return (
        yarn(plain, scaling, model.rope_theta) if "beta_fast" in scaling else llama(plain, scaling)
    )


def llama(plain: Tensor, scaling: Mapping[str, float]) -> Tensor:
    """Stretch slow waves by `factor`, keep fast ones, and blend between.

    A wave is slow when the original context holds fewer than `low_freq_factor` of its periods, fast
    when it holds more than `high_freq_factor`.
    """
    periods = scaling["original_max_seq_len"] * plain / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    keep = ((periods - low) / (high - low)).clamp(0, 1)
    return keep * plain + (1 - keep) * plain / scaling["factor"]


def yarn(plain: Tensor, scaling: Mapping[str, float], theta: float) -> Tensor:
    """Stretch as YaRN (2309.00071) does, in the whole numbers of its published code.

    Plane i makes `original_max_seq_len * plain[i] / 2 pi` periods in the original context. Planes
    of more than `beta_fast` stay, of fewer than `beta_slow` are stretched, and between the two the
    share grows evenly from plane to plane.
    """
    rotated = 2 * len(plain)

    def plane_of(periods: float) -> float:
        length = scaling["original_max_seq_len"] / (2 * math.pi * periods)
        return rotated * math.log(length) / (2 * math.log(theta))

    first = max(math.floor(plane_of(scaling["beta_fast"])), 0)
    last = min(math.ceil(plane_of(scaling["beta_slow"])), rotated - 1)
    planes = torch.arange(len(plain), dtype=torch.float64)
    stretched = ((planes - first) / max(last - first, 0.001)).clamp(0, 1)
    return plain * (1 - stretched) + plain / scaling["factor"] * stretched


def magnitude(scaling: Mapping[str, float], weight: float) -> float:
    """By how much YaRN enlarges queries and keys, so that attention stays as sharp."""
    return 1 + 0.1 * weight * math.log(scaling["factor"]) if scaling["factor"] > 1 else 1.0


def rotation_scale(model: ModelSpec) -> float:
    """What rotated elements grow by under YaRN; DeepSeek moves (part of) it to `query_scale`."""
    scaling = model.rope_scaling
    if scaling is None or "beta_fast" not in scaling:
        return 1.0
    weight, elsewhere = scaling.get("mscale"), scaling.get("mscale_all_dim")
    if weight and elsewhere:
        return magnitude(scaling, weight) / magnitude(scaling, elsewhere)
    return magnitude(scaling, 1.0)


def query_scale(model: ModelSpec) -> float:
    """What products of latent attention grow by under YaRN (DeepSeek-V2, 2405.04434)."""
    scaling = model.rope_scaling
    if scaling is None or model.mla is None or not scaling.get("mscale_all_dim"):
        return 1.0
    return magnitude(scaling, scaling["mscale_all_dim"]) ** 2


def rotation(model: ModelSpec, positions_S: Tensor, dtype: torch.dtype) -> Rotation:
    """Return cosines and sines `[S, 1, R/2]` of these positions in the sequence.

    Angles are made in float64, because float32 is 0.06 radian off at position 1,000,000.
    """
    frequencies_R = frequencies(model).to(positions_S.device)
    angles = torch.outer(positions_S.double(), frequencies_R).unsqueeze(1)
    size = rotation_scale(model)
    return (angles.cos() * size).to(dtype), (angles.sin() * size).to(dtype)


def rotate(x_BSNH: Tensor, cos_S1R: Tensor, sin_S1R: Tensor) -> Tensor:
    """Rotate the first R elements of every head, in the precision of the cosines."""
    if not (torch.is_grad_enabled() and x_BSNH.requires_grad):
        return _turn(x_BSNH, cos_S1R, sin_S1R)
    turned: Tensor = Turn.apply(x_BSNH, cos_S1R, sin_S1R)  # type: ignore[no-untyped-call]
    return turned


class Turn(torch.autograd.Function):
    """The gradient of a rotation is the rotation back: half the time of torch's own."""

    @staticmethod
    def forward(ctx: Any, x_BSNH: Tensor, cos_S1R: Tensor, sin_S1R: Tensor) -> Tensor:
        ctx.save_for_backward(cos_S1R, sin_S1R)
        return _turn(x_BSNH, cos_S1R, sin_S1R)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cos_S1R, sin_S1R = ctx.saved_tensors
        return _turn(gradients[0], cos_S1R, -sin_S1R), None, None


def _turn(x_BSNH: Tensor, cos_S1R: Tensor, sin_S1R: Tensor) -> Tensor:
    half = cos_S1R.shape[-1]
    turning, rest = x_BSNH[..., : 2 * half], x_BSNH[..., 2 * half :]
    turning = turning.to(torch.promote_types(x_BSNH.dtype, cos_S1R.dtype))
    out = turning * torch.cat((cos_S1R, cos_S1R), dim=-1)
    out[..., :half].addcmul_(turning[..., half:], sin_S1R, value=-1)
    out[..., half:].addcmul_(turning[..., :half], sin_S1R)
    turned = out.to(x_BSNH.dtype)
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned
