"""Attention of new tokens to what the blocks hold, as the `Kernel` of a model's attention.

The model stays the one that is trained: its attention hands over queries, keys and values of the
step's tokens, in a row. The kernel writes keys and values to their blocks and mixes values:

    one token of a sequence     its blocks are gathered and it sees all of them, itself included;
                                many sequences at once
    several tokens (a prompt)   a causal part among themselves, without a gather, and a full part
                                for what was before them; merged by their log-sum-exp (`blockwise`)

With a sliding window only the blocks that it reaches into are gathered.

Grouped heads are never repeated: the queries of one key head are rows of one product.

Latent attention hands over one key per token, whose first part is the value too. The scale differs
from that of the width then, and comes with the queries.

Shapes: T tokens of the step, R sequences, N query heads, K key/value heads, G = N / K, H key width,
L tokens held in blocks.
"""

import math
from typing import Protocol

import torch
from torch import Tensor

from parctl.runtime.inference.cache import LayerCache
from parctl.runtime.inference.inputs import Fresh, Reads, StepInputs
from parctl.runtime.model import blockwise


class Step:
    """The inputs of the step that is being computed, for all that reads them."""

    inputs: StepInputs

    def positions(self, num_tokens: int, device: torch.device) -> Tensor:
        """Where the step's tokens stand in their sequences."""
        return self.inputs.positions_T


class Mix(Protocol):
    """Attention of a step's tokens, with their keys and values in one layer's blocks."""

    def __call__(self, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
        """Return `[T, N, H]`. Queries are scaled already."""


class PagedKernel:
    """What the model calls, for one layer."""

    def __init__(self, mix: Mix) -> None:
        self._mix = mix

    def mask(self, documents_BT: Tensor | None) -> Tensor | None:
        assert documents_BT is None, "the step knows which token belongs to which sequence"
        return None

    def __call__(
        self, q_BSNH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, mask: Tensor | None, *, dropout: float
    ) -> Tensor:
        scaled_TNH = q_BSNH[0] / math.sqrt(q_BSNH.shape[-1])
        return self._mix(scaled_TNH, k_BSKH[0], v_BSKH[0]).unsqueeze(0)

    def mix_latents(self, q_BSNC: Tensor, k_BSC: Tensor, scale: float) -> Tensor:
        """`[B, S, N, C]`, of which the caller takes the part that is values."""
        k_T1C = k_BSC[0].unsqueeze(1)
        return self._mix(q_BSNC[0] * scale, k_T1C, k_T1C).unsqueeze(0)


class LocalMix:
    """All tokens, and all blocks of their sequences, are on this rank."""

    def __init__(self, cache: LayerCache, step: Step, window: int | None = None) -> None:
        self._cache, self._step, self._window = cache, step, window

    def __call__(self, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
        inputs = self._step.inputs
        view = inputs.views[self._window]
        self._cache.write(inputs.rows_TK, k_TKH, v_TKH)
        parts = []
        for reads in view.reads:
            out_RNH, _ = attend_blocks(q_TNH[reads.tokens], self._cache, reads)
            parts.append(out_RNH)
        for fresh in view.fresh:
            own = fresh.tokens
            parts.append(attend_fresh(q_TNH[own], k_TKH[own], v_TKH[own], self._cache, fresh))
        num_missing = len(q_TNH) - sum(map(len, parts))  # padding sees nothing
        if num_missing or not parts:
            parts.append(q_TNH.new_zeros(num_missing, *q_TNH.shape[1:]))
        return torch.cat(parts) if len(parts) > 1 else parts[0]


def attend_blocks(
    q_RNH: Tensor, cache: LayerCache, reads: Reads, *, with_lse: bool = False
) -> tuple[Tensor, Tensor | None]:
    """One query per sequence. Returns `[R, N, H]` and, if asked, the log-sum-exp `[R, N]`."""
    keys_RKLH, values_RKLH = cache.read(reads.rows_RKM)
    num_sequences, num_heads = keys_RKLH.shape[:2]
    q_RKGH = q_RNH.reshape(num_sequences, num_heads, -1, q_RNH.shape[-1])
    scores_RKGL = q_RKGH @ keys_RKLH.mT
    wide = torch.promote_types(scores_RKGL.dtype, torch.float32)
    if reads.bias_RL is not None:
        scores_RKGL = scores_RKGL + reads.bias_RL[:, None, None]
    lse_RN = None
    weights_RKGL = scores_RKGL.softmax(dim=-1, dtype=wide)
    if with_lse:
        lse_RN = scores_RKGL.to(wide).logsumexp(dim=-1).flatten(1)
        if reads.blind:
            weights_RKGL = weights_RKGL.nan_to_num()
    out_RKGH = weights_RKGL.to(values_RKLH.dtype) @ values_RKLH
    return out_RKGH.flatten(1, 2), lse_RN


def attend_fresh(
    q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, cache: LayerCache, fresh: Fresh
) -> Tensor:
    """The tokens of one chunk, to themselves and to all before them. Returns `[T, N, H]`."""
    num_tokens, num_heads, width = q_TNH.shape
    q_KGTH = q_TNH.reshape(num_tokens, k_TKH.shape[1], -1, width).permute(1, 2, 0, 3)
    shape = q_KGTH.shape
    visible = fresh.visible_TT
    out_KGTH, lse_KGT = blockwise.forward(
        q_KGTH,
        k_TKH.permute(1, 0, 2).unsqueeze(1).expand(shape),
        v_TKH.permute(1, 0, 2).unsqueeze(1).expand(shape),
        scale=1.0,
        causal=visible is None,
        visible=None if visible is None else visible.expand(shape[0], 1, -1, -1),
    )
    if fresh.length > 0:
        more_out, more_lse = attend_history(q_TNH, cache, fresh)
        out_KGTH, lse_KGT = out_KGTH.contiguous(), lse_KGT.contiguous()
        blockwise.merge(
            out_KGTH,
            lse_KGT,
            more_out.permute(1, 0, 2).reshape(shape),
            more_lse.T.reshape(shape[:3]),
        )
    out_TNH = out_KGTH.permute(2, 0, 1, 3).reshape(num_tokens, num_heads, width)
    return out_TNH.to(q_TNH.dtype)


def attend_history(q_TNH: Tensor, cache: LayerCache, fresh: Fresh) -> tuple[Tensor, Tensor]:
    """What this rank holds of the tokens before these: `[T, N, H]` and `[T, N]`, wide."""
    num_tokens, num_heads, width = q_TNH.shape
    visible_1QL = None
    if fresh.visible_TL is not None:  # for the queries of every group
        visible_1QL = fresh.visible_TL.repeat(num_heads // cache.num_heads, 1).unsqueeze(0)
    keys, values = cache.read(fresh.rows_1KM)  # [1, K, L, H]
    q_1KQH = (
        q_TNH.reshape(num_tokens, keys.shape[1], -1, width)
        .permute(1, 2, 0, 3)
        .reshape(1, keys.shape[1], -1, width)
    )
    out, lse = blockwise.forward(
        q_1KQH,
        keys[:, :, : fresh.length],
        values[:, :, : fresh.length],
        scale=1.0,
        causal=False,
        visible=None if visible_1QL is None else visible_1QL.unsqueeze(0),
    )
    return (
        out.reshape(num_heads, num_tokens, width).permute(1, 0, 2),
        lse.reshape(num_heads, num_tokens).T,
    )
