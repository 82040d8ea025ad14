"""Multi-head latent attention (DeepSeek-V2, 2405.04434, section 2.1).

Keys and values of all heads are projected up from one latent per token; one rotated key part is
shared by all heads::

    x --wq_down, norm--> q latent --wq_up--> q nope | q rope     (or x --wq--> q nope | q rope)
    x --wkv_down-------> kv latent | k rope
                         kv latent --norm, wkv_up--> k nope | v
    scores = (q nope . k nope + q rope . k rope) / sqrt(nope + rope)

Where latents are cached (inference), the projections up move to the other side of the products, so
that keys and values are never made; W are the rows of wkv_up for a head's keys or values::

    q nope . (W_key latent)  = (W_key^T q nope) . latent
    sum of weight (W_value latent) = W_value (sum of weight latent)

Tensor parallelism splits the heads, so the projections up and out; those down and their norms stay
whole on every rank.

Shapes: B batch, S tokens, D dim, N heads (this rank's), C latent, R rope part, H a head's parts.
"""

import math
from typing import Protocol

import torch
from torch import Tensor

from parctl.recipes.spec import ModelSpec
from parctl.runtime.model.attention import SelfAttention
from parctl.runtime.model.linear import Linear, local
from parctl.runtime.model.norm import RmsNorm
from parctl.runtime.model.rope import Rotation, query_scale, rotate


class LatentKernel(Protocol):
    """Mixes latents, which are one key and value for all heads."""

    def mix_latents(self, q_BSNX: Tensor, key_BSX: Tensor, scale: float) -> Tensor:
        """Return the weighted sums of keys, `[B, S, N, X]`; X is C + R."""


class LatentAttention(SelfAttention):
    latent_kernel: LatentKernel | None = None  # in place of `kernel`

    def __init__(self, model: ModelSpec) -> None:
        super().__init__(model)
        assert model.mla is not None
        self.mla = mla = model.mla
        self.query_scale = query_scale(model)
        query_dim = model.num_heads * (mla.qk_nope_head_dim + mla.qk_rope_head_dim)
        key_value_dim = model.num_heads * (mla.qk_nope_head_dim + mla.v_head_dim)
        if mla.q_lora_rank is None:
            self.wq = Linear(model.dim, query_dim, bias=False)
        else:
            self.wq_down = Linear(model.dim, mla.q_lora_rank, bias=False)
            self.q_norm = RmsNorm(mla.q_lora_rank, model.norm_eps)
            self.wq_up = Linear(mla.q_lora_rank, query_dim, bias=False)
        self.wkv_down = Linear(model.dim, mla.kv_lora_rank + mla.qk_rope_head_dim, bias=False)
        self.kv_norm = RmsNorm(mla.kv_lora_rank, model.norm_eps)
        self.wkv_up = Linear(mla.kv_lora_rank, key_value_dim, bias=False)
        self.wo = Linear(model.num_heads * mla.v_head_dim, model.dim, bias=False)

    def forward(
        self, x_BSD: Tensor, rotation: Rotation | None, mask: Tensor | None = None
    ) -> Tensor:
        x_BSD = self.enter(x_BSD)
        batch, num_tokens, _ = x_BSD.shape
        mla = self.mla
        nope, rope = mla.qk_nope_head_dim, mla.qk_rope_head_dim
        if mla.q_lora_rank is None:
            q_BSX = self.wq(x_BSD)
        else:
            q_BSX = self.wq_up(self.q_norm(self.wq_down(x_BSD)))
        if self.query_scale != 1.0:
            q_BSX = q_BSX * self.query_scale
        q_BSNH = q_BSX.view(batch, num_tokens, -1, nope + rope)
        latent_BSC, key_BSR = self.wkv_down(x_BSD).split([mla.kv_lora_rank, rope], dim=-1)
        latent_BSC = self.kv_norm(latent_BSC)
        q_nope_BSNH, q_rope_BSNR = q_BSNH.split([nope, rope], dim=-1)
        k_rope_BS1R = key_BSR.unsqueeze(2)
        if rotation is not None:
            q_rope_BSNR = rotate(q_rope_BSNR, *rotation)
            k_rope_BS1R = rotate(k_rope_BS1R, *rotation)
        if self.latent_kernel is not None:
            key_BSX = torch.cat((latent_BSC, k_rope_BS1R.squeeze(2)), dim=-1)
            mixed: Tensor = self.wo(
                self.attend_latents(self.latent_kernel, q_nope_BSNH, q_rope_BSNR, key_BSX)
            )
            return mixed
        up_BSNH = self.wkv_up(latent_BSC).view(batch, num_tokens, -1, nope + mla.v_head_dim)
        k_nope_BSNH, v_BSNH = up_BSNH.split([nope, mla.v_head_dim], dim=-1)
        num_heads = q_BSNH.shape[2]
        q_BSNH = torch.cat((q_nope_BSNH, q_rope_BSNR), dim=-1)
        k_BSNH = torch.cat((k_nope_BSNH, k_rope_BS1R.expand(-1, -1, num_heads, -1)), dim=-1)
        out_BSNH = self.attend(q_BSNH, k_BSNH, v_BSNH, mask)
        out: Tensor = self.wo(out_BSNH.reshape(batch, num_tokens, -1))
        return out

    def attend_latents(
        self, kernel: LatentKernel, q_nope_BSNH: Tensor, q_rope_BSNR: Tensor, key_BSX: Tensor
    ) -> Tensor:
        """Return what goes into `wo`, `[B, S, N H]`."""
        mla = self.mla
        up_NHC = local(self.wkv_up.weight).view(
            -1, mla.qk_nope_head_dim + mla.v_head_dim, mla.kv_lora_rank
        )
        key_NHC, value_NHC = torch.split(up_NHC, [mla.qk_nope_head_dim, mla.v_head_dim], dim=1)
        q_BSNC = torch.einsum("bsnh,nhc->bsnc", q_nope_BSNH, key_NHC)
        mixed_BSNX = kernel.mix_latents(
            torch.cat((q_BSNC, q_rope_BSNR), dim=-1),
            key_BSX,
            1 / math.sqrt(mla.qk_nope_head_dim + mla.qk_rope_head_dim),
        )
        mixed_BSNC = mixed_BSNX[..., : mla.kv_lora_rank]
        return torch.einsum("bsnc,nhc->bsnh", mixed_BSNC, value_NHC).flatten(2)
