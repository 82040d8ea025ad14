"""Attention: grouped key and value heads (2305.13245), normalised queries and keys (Qwen3).

A module projects, and a `Kernel` mixes values: on one device here, over a cp group in
`runtime.parallel.context_parallel`. Multi-head latent attention
(`runtime.model.latent_attention`) projects otherwise and mixes alike.

Shapes: B batch, S tokens held here, T tokens of the whole sequence, M tokens of an encoder, D dim,
N query heads, K key/value heads, H head_dim. Under tensor parallelism N and K count this rank's.
"""

from typing import Protocol

from torch import Tensor, nn
from torch.nn import functional as F

from parctl.recipes.spec import ModelSpec
from parctl.runtime.model.dropout import own_stream
from parctl.runtime.model.linear import Exchange, Linear, nothing
from parctl.runtime.model.norm import RmsNorm
from parctl.runtime.model.rope import Rotation, rotate
from parctl.runtime.model.short_attention import is_faster, short_attention


class Kernel(Protocol):
    """Mixes values by softmax of scaled products of queries and keys."""

    def mask(self, documents_BT: Tensor | None) -> Tensor | None:
        """Return what every layer's call needs to keep documents apart; made once per pass."""

    def __call__(
        self, q_BSNH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, mask: Tensor | None, *, dropout: float
    ) -> Tensor:
        """Return `[B, S, N, H]`, H that of the values."""


class LocalKernel:
    """Attention over tokens that are all here, by torch's fused kernels where they are fastest."""

    def __init__(self, *, causal: bool, scale: float | None = None) -> None:
        self._causal, self._scale = causal, scale  # of the products; None: 1 / sqrt(head_dim)

    def mask(self, documents_BT: Tensor | None) -> Tensor | None:
        """Return `[B, 1, T, T]`: true where a query (row) sees a key."""
        if documents_BT is None:
            return None
        same_BTT = documents_BT.unsqueeze(2) == documents_BT.unsqueeze(1)
        return (same_BTT.tril() if self._causal else same_BTT).unsqueeze(1)

    def __call__(
        self, q_BSNH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, mask: Tensor | None, *, dropout: float
    ) -> Tensor:
        queries_per_key = q_BSNH.shape[2] // k_BSKH.shape[2]
        if queries_per_key > 1:  # torch's fused CPU kernel has no grouped heads
            k_BSKH = k_BSKH.repeat_interleave(queries_per_key, dim=2)
            v_BSKH = v_BSKH.repeat_interleave(queries_per_key, dim=2)
        value_dim = v_BSKH.shape[-1]
        missing = q_BSNH.shape[-1] - value_dim
        if missing and q_BSNH.device.type == "cpu":  # nor values narrower than keys
            v_BSKH = F.pad(v_BSKH, (0, missing))
        q, k, v = (x.transpose(1, 2) for x in (q_BSNH, k_BSKH, v_BSKH))
        if mask is None and dropout == 0 and is_faster(q, k):
            scale = self._scale or q.shape[-1] ** -0.5
            mixed: Tensor = short_attention(q, k, v, self._causal, scale)
            return mixed.transpose(1, 2)[..., :value_dim]
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=self._causal and mask is None,
            scale=self._scale,
        )
        return out.transpose(1, 2)[..., :value_dim]


def local_kernel(model: ModelSpec) -> LocalKernel:
    """With relative positions, the mask holds their bias and what is not seen."""
    if model.positions == "relative":
        return LocalKernel(causal=False, scale=1.0)
    return LocalKernel(causal=model.causal)


class SelfAttention(nn.Module):
    """What all attention modules share: how they are entered, and how they mix."""

    tp_rank = 0  # set when heads are split: dropout then draws from this rank's own stream

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        self.dropout = model.dropout
        self.enter: Exchange = nothing
        self.kernel: Kernel = local_kernel(model)

    def forward(
        self, x_BSD: Tensor, rotation: Rotation | None, mask: Tensor | None = None
    ) -> Tensor:
        raise NotImplementedError

    def attend(
        self, q_BSNH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Mix the values that each query sees. Returns `[B, S, N, H]`."""
        if not self.training or self.dropout == 0:
            return self.kernel(q_BSNH, k_BSKH, v_BSKH, mask, dropout=0.0)
        with own_stream(self.tp_rank, q_BSNH.device):
            return self.kernel(q_BSNH, k_BSKH, v_BSKH, mask, dropout=self.dropout)


class Attention(SelfAttention):
    def __init__(self, model: ModelSpec) -> None:
        super().__init__(model)
        self.head_dim = model.head_dim
        bias = model.bias or model.qkv_bias
        query_dim = model.num_heads * model.head_dim
        key_dim = model.num_kv_heads * model.head_dim
        self.wq = Linear(model.dim, query_dim, bias=bias)
        self.wk = Linear(model.dim, key_dim, bias=bias)
        self.wv = Linear(model.dim, key_dim, bias=bias)
        self.wo = Linear(query_dim, model.dim, bias=model.bias)
        self.q_norm = RmsNorm(model.head_dim, model.norm_eps) if model.qk_norm else None
        self.k_norm = RmsNorm(model.head_dim, model.norm_eps) if model.qk_norm else None

    def forward(
        self,
        x_BSD: Tensor,
        rotation: Rotation | None,
        mask: Tensor | None = None,
        memory_BMD: Tensor | None = None,
    ) -> Tensor:
        """Take keys and values from `memory_BMD` where it is given; it has been entered already."""
        x_BSD = self.enter(x_BSD)
        batch, num_tokens, _ = x_BSD.shape
        source_BMD = x_BSD if memory_BMD is None else memory_BMD
        num_keys = source_BMD.shape[1]
        q_BSNH = self.wq(x_BSD).view(batch, num_tokens, -1, self.head_dim)
        k_BSKH = self.wk(source_BMD).view(batch, num_keys, -1, self.head_dim)
        v_BSKH = self.wv(source_BMD).view(batch, num_keys, -1, self.head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            q_BSNH, k_BSKH = self.q_norm(q_BSNH), self.k_norm(k_BSKH)
        if rotation is not None:
            q_BSNH, k_BSKH = rotate(q_BSNH, *rotation), rotate(k_BSKH, *rotation)
        out_BSNH = self.attend(q_BSNH, k_BSKH, v_BSKH, mask)
        out: Tensor = self.wo(out_BSNH.reshape(batch, num_tokens, -1))
        return out
