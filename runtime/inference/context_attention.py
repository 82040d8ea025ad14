"""Attention where the blocks of a sequence are dealt out over cp ranks.

A step of single tokens is computed by every rank alike; each looks into the blocks that it holds,
and the parts are merged by their log-sum-exp (one all-gather of `[T, N, H + 1]`).

A step with prompts is split by tokens, as in training (2411.01783 calls the second part pass-Q)::

    among the new tokens     a ring (keys and values travel), or Ulysses (heads for tokens)
    to what was before them  queries of all ranks are gathered, each rank answers for its blocks,
                             and the answers go back to the ranks whose queries they were

No rank ever holds the keys of a whole sequence, only those of one step's tokens. In a layer with a
sliding window a token sees few of the new ones, which were gathered to be written to the blocks
anyhow: each rank's queries take them from there.

Shapes: C ranks, S tokens of this rank, T = C S, N query heads, K key/value heads, H width.
"""

import math
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from parctl.runtime.inference.cache import LayerCache
from parctl.runtime.inference.inputs import StepInputs
from parctl.runtime.inference.paged_attention import Step, attend_blocks, attend_history
from parctl.runtime.model import blockwise
from parctl.runtime.model.sequence import SequencePart
from parctl.runtime.parallel.collectives import all_gather_tokens, all_to_all_rows
from parctl.runtime.parallel.context_parallel import UlyssesKernel
from parctl.runtime.parallel.ring_attention import expand, heads_first, ring_attention


class ContextMix:
    """The `Mix` of one layer over a cp group."""

    def __init__(
        self,
        cache: LayerCache,
        step: Step,
        group: dist.ProcessGroup,
        kind: Literal["ring", "ulysses"],
        window: int | None = None,
    ) -> None:
        self._cache, self._step, self._group = cache, step, group
        self._window = window
        self._ulysses = UlyssesParts(group, causal=True) if kind == "ulysses" else None

    def __call__(self, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
        inputs = self._step.inputs
        if inputs.part is None:
            self._cache.write(inputs.rows_TK, k_TKH, v_TKH)
            out_TNX = self._look_back(q_TNH, inputs)
            parts = all_gather_tokens(out_TNX.unsqueeze(0), self._group)
            return merge(parts.view(self._group.size(), *out_TNX.shape)).to(q_TNH.dtype)
        gather = partial(whole_step, part=inputs.part, group=self._group)
        k_whole, v_whole = gather(k_TKH), gather(v_TKH)
        self._cache.write(inputs.rows_TK, k_whole, v_whole)
        if self._window is None:
            own_SNX = self._among_new(q_TNH, k_TKH, v_TKH, inputs)
        else:
            own_SNX = self._within(self._window, q_TNH, k_whole, v_whole, inputs)
        view = inputs.views[self._window]
        if not any(one.length for one in view.fresh) and not view.reads:
            return own_SNX[..., :-1].to(q_TNH.dtype)
        looked_TNX = self._look_back(gather(q_TNH), inputs)
        rows = order_of(inputs.part, len(q_TNH), q_TNH.device)
        each = [len(q_TNH)] * self._group.size()
        answers = all_to_all_rows(looked_TNX[rows], each, each, self._group)
        answers_CSNX = answers.view(self._group.size(), *own_SNX.shape)
        return merge(torch.cat((answers_CSNX, own_SNX.unsqueeze(0)))).to(q_TNH.dtype)

    def _look_back(self, q_TNH: Tensor, inputs: StepInputs) -> Tensor:
        """What this rank's blocks say to all tokens: `[T, N, H + 1]`, the log-sum-exp last."""
        wide = torch.promote_types(q_TNH.dtype, torch.float32)
        answers_TNX = q_TNH.new_zeros((*q_TNH.shape[:2], q_TNH.shape[2] + 1), dtype=wide)
        answers_TNX[..., -1] = -math.inf
        view = inputs.views[self._window]
        for reads in view.reads:
            out, lse = attend_blocks(q_TNH[reads.tokens], self._cache, reads, with_lse=True)
            assert lse is not None
            answers_TNX[reads.tokens] = pack(out, lse)
        for fresh in view.fresh:
            if fresh.length > 0:
                own = fresh.tokens
                answers_TNX[own] = pack(*attend_history(q_TNH[own], self._cache, fresh))
        return answers_TNX

    def _among_new(self, q_SNH: Tensor, k_SKH: Tensor, v_SKH: Tensor, inputs: StepInputs) -> Tensor:
        """Each token sees the step's tokens of its sequence up to itself: `[S, N, H + 1]`."""
        documents_1T = inputs.documents_T.unsqueeze(0)
        q, k, v = (x.unsqueeze(0) for x in (q_SNH, k_SKH, v_SKH))
        if self._ulysses is not None:
            return self._ulysses.attend(q, k, v, documents_1T)
        # the ring scales by the width
        q = q * math.sqrt(q.shape[-1])
        out, lse = ring_attention(q, k, v, documents_1T, True, self._group.group_name)
        return pack(out[0], lse[0].T)

    def _within(
        self, window: int, q_SNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, inputs: StepInputs
    ) -> Tensor:
        """Each token sees those of its sequence that the window reaches: `[S, N, H + 1]`."""
        assert inputs.part is not None
        # a sequence's tokens of the step are successive, so places differ as positions do
        places_S = inputs.part.positions(len(q_SNH), q_SNH.device)
        places_T = torch.arange(len(k_TKH), device=q_SNH.device)
        back_ST = places_S.unsqueeze(1) - places_T
        same_ST = inputs.documents_T[places_S].unsqueeze(1) == inputs.documents_T
        queries, keys, values = heads_first(*(x.unsqueeze(0) for x in (q_SNH, k_TKH, v_TKH)))
        out, lse = blockwise.forward(
            queries,
            *expand(keys, values, queries),
            scale=1.0,
            causal=False,
            visible=(same_ST & (back_ST >= 0) & (back_ST < window))[None, None],
        )
        return pack(out[0].transpose(0, 1), lse[0].T)


class UlyssesParts(UlyssesKernel):
    """Ulysses that tells the log-sum-exp too."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, documents_1T: Tensor) -> Tensor:
        """Return `[S, N, H + 1]` for `[1, S, heads, H]`."""
        count, num_heads = self._group.size(), k.shape[2]
        if num_heads < count:
            k = k.repeat_interleave(count // num_heads, dim=2)
            v = v.repeat_interleave(count // num_heads, dim=2)
        queries, keys, values = heads_first(*self._gather_tokens(q, k, v))
        out, lse = blockwise.forward(
            queries,
            *expand(keys, values, queries),
            scale=1.0,
            causal=False,
            visible=self.mask(documents_1T),
        )
        packed = torch.cat((out, lse.unsqueeze(-1)), dim=-1).transpose(1, 2)
        return self._gather_heads(packed.contiguous())[0]


def pack(out_TNH: Tensor, lse_TN: Tensor) -> Tensor:
    return torch.cat((out_TNH.to(lse_TN.dtype), lse_TN.unsqueeze(-1)), dim=-1)


def merge(parts_PTNX: Tensor) -> Tensor:
    """Merge what several sets of keys say: `[T, N, H]`. Who saw nothing at all gets zeros."""
    out_PTNH, lse_PTN = parts_PTNX[..., :-1], parts_PTNX[..., -1]
    weights_PTN = (lse_PTN - lse_PTN.logsumexp(dim=0)).exp().nan_to_num()
    return (weights_PTN.unsqueeze(-1) * out_PTNH).sum(dim=0)


def order_of(part: SequencePart, num_tokens: int, device: torch.device) -> Tensor:
    """Return the places in the step of the tokens of rank 0, then of rank 1, and so on."""
    ranks = (replace(part, index=rank) for rank in range(part.count))
    return torch.cat([rank.positions(num_tokens, device) for rank in ranks])


def whole_step(x_SKH: Tensor, *, part: SequencePart, group: dist.ProcessGroup) -> Tensor:
    """Gather the tokens of all ranks, in the order of the step."""
    gathered = all_gather_tokens(x_SKH.unsqueeze(0), group)[0]
    return gathered[order_of(part, len(x_SKH), x_SKH.device).argsort()]
