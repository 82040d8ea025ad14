"""Ring attention (2310.01889) in zigzag order (2311.09431): keys and values go round, queries stay.

In round i a rank holds the keys and values of rank (own - i) and sends them on while it computes.
Each rank holds two chunks of the sequence, an early one and a late one
(`runtime.model.sequence`), so with a causal mask the work of every round after the first is the
same half block everywhere::

    keys from      queries      keys
    itself         both         both     causal
    a lower rank   both         early    all seen: lower ranks' late chunks lie behind both of ours
    a higher rank  late         both     all seen

Backward, keys and values go round once more, and with them the sums of their gradients, which come
home after the last round. With grouped heads (GQA) only the heads that exist are sent.

The op is registered with torch under one name, so that selective recomputation keeps its result,
and does not send everything round again, and so that `torch.compile` leaves it whole.

Shapes: B batch, N query heads, K key/value heads, S tokens held here, T of the whole sequence, H
head_dim, Hv that of the values.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d
from torch.nn import functional as F

from parctl.runtime.model import blockwise
from parctl.runtime.model.sequence import SequencePart


class RingKernel:
    """A `Kernel` over a cp group."""

    def __init__(self, group: dist.ProcessGroup, part: SequencePart, *, causal: bool) -> None:
        assert part.zigzag and part.count == group.size()
        self._group, self._causal = group, causal

    def mask(self, documents_BT: Tensor | None) -> Tensor | None:
        return documents_BT

    def __call__(
        self, q_BSNH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, mask: Tensor | None, *, dropout: float
    ) -> Tensor:
        assert dropout == 0, "refused before any process starts"
        out: Tensor = ring_attention(
            q_BSNH, k_BSKH, v_BSKH, mask, self._causal, self._group.group_name
        )[0]
        return out


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Which of our queries meet which of the keys that are here, as slices of tokens."""

    queries: slice
    keys: slice
    causal: bool


EVERY = slice(None)


def plan_round(rank: int, source: int, num_tokens: int, *, causal: bool) -> Round:
    """Return the work of `rank` on the keys of `source`."""
    if not causal or source == rank:
        return Round(queries=EVERY, keys=EVERY, causal=causal)
    half = num_tokens // 2
    if source < rank:
        return Round(queries=EVERY, keys=slice(0, half), causal=False)
    return Round(queries=slice(half, None), keys=EVERY, causal=False)


class Ring:
    """The exchanges of one pass, and what each round works on."""

    def __init__(
        self, group_name: str, num_tokens: int, documents_BT: Tensor | None, causal: bool
    ) -> None:
        # an op of torch takes the name of a group, not the group
        resolve: Any = distributed_c10d._resolve_process_group  # type: ignore[attr-defined]
        self.group: dist.ProcessGroup = resolve(group_name)
        self.rank, self.count = self.group.rank(), self.group.size()
        self.num_tokens, self.causal, self.documents_BT = num_tokens, causal, documents_BT

    def round(self, index: int) -> Round:
        source = (self.rank - index) % self.count
        return plan_round(self.rank, source, self.num_tokens, causal=self.causal)

    def visible(self, index: int) -> Tensor | None:
        """Return `[B, 1, Q, L]` for the slices of this round, None without documents."""
        if self.documents_BT is None:
            return None
        work = self.round(index)
        q_S = self._positions(self.rank)[work.queries]
        k_S = self._positions((self.rank - index) % self.count)[work.keys]
        seen = self.documents_BT[:, q_S].unsqueeze(2) == self.documents_BT[:, k_S].unsqueeze(1)
        if work.causal:
            seen = seen & (q_S.unsqueeze(1) >= k_S)
        return seen.unsqueeze(1)

    def _positions(self, rank: int) -> Tensor:
        assert self.documents_BT is not None
        part = SequencePart(index=rank, count=self.count, zigzag=True)
        return part.positions(self.num_tokens, self.documents_BT.device)

    def send_on(self, buffer: Tensor) -> tuple[Tensor, list[dist.Work]]:
        """Begin to send `buffer` to the next rank. Returns what comes, once the work is done."""
        received = torch.empty_like(buffer)
        work = dist.batch_isend_irecv(
            [
                dist.P2POp(
                    dist.isend, buffer, group=self.group, group_peer=(self.rank + 1) % self.count
                ),
                dist.P2POp(
                    dist.irecv, received, group=self.group, group_peer=(self.rank - 1) % self.count
                ),
            ]
        )
        return received, work


def pack(k: Tensor, v: Tensor) -> Tensor:
    return torch.cat((k.reshape(-1), v.reshape(-1)))


def unpack(buffer: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return views of `buffer` in the shapes of k and v."""
    first, second = torch.split(buffer, [k.numel(), v.numel()])
    return first.view(k.shape), second.view(v.shape)


def heads_first(*parts_BSNH: Tensor) -> list[Tensor]:
    """`[B, S, N, H]` to `[B, N, S, H]`, as kernels want it; views."""
    return [x.transpose(1, 2) for x in parts_BSNH]


def finish(work: list[dist.Work]) -> None:
    for part in work:
        part.wait()


def expand(k: Tensor, v: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Repeat key/value heads for every query head, and widen values to keys with zeros."""
    repeats = q.shape[1] // k.shape[1]
    v = F.pad(v, (0, q.shape[-1] - v.shape[-1]))
    if repeats > 1:
        k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
    return k.contiguous(), v.contiguous()


def fold(gradient: Tensor, like: Tensor) -> Tensor:
    """Undo `expand` for a gradient: add up repeated heads, drop the added width."""
    batch, _, num_tokens, width = gradient.shape
    heads = gradient.reshape(batch, like.shape[1], -1, num_tokens, width).sum(dim=2)
    return heads[..., : like.shape[-1]]


@torch.library.custom_op("parctl::ring_attention", mutates_args=())
def ring_attention(
    q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None, causal: bool, group_name: str
) -> tuple[Tensor, Tensor]:
    """Return the mixed values `[B, S, N, Hv]` and the log-sum-exp `[B, N, S]` over all keys.

    q `[B, S, N, H]`, k `[B, S, K, H]`, v `[B, S, K, Hv]`, documents `[B, T]`.
    forward: keys and values once round the ring; backward: once more, and their gradients with them
    """
    ring = Ring(group_name, q.shape[1], documents, causal)
    scale = 1 / math.sqrt(q.shape[-1])
    (queries,) = heads_first(q)
    buffer, coming, work = pack(k, v), k, list[dist.Work]()
    out = lse = q
    for index in range(ring.count):
        if index + 1 < ring.count:
            coming, work = ring.send_on(buffer)
        todo = ring.round(index)
        keys, values = heads_first(*unpack(buffer, k, v))
        more_out, more_lse = blockwise.forward(
            queries[:, :, todo.queries],
            *expand(keys[:, :, todo.keys], values[:, :, todo.keys], queries),
            scale=scale,
            causal=todo.causal and documents is None,
            visible=ring.visible(index),
        )
        if index == 0:
            out, lse = more_out.contiguous(), more_lse.contiguous()
        else:
            blockwise.merge(out[:, :, todo.queries], lse[:, :, todo.queries], more_out, more_lse)
        if index + 1 < ring.count:
            finish(work)
            buffer = coming
    return out[..., : v.shape[-1]].transpose(1, 2).to(q.dtype).contiguous(), lse


@torch.library.custom_op("parctl::ring_attention_backward", mutates_args=())
def ring_attention_backward(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    documents: Tensor | None,
    causal: bool,
    group_name: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v."""
    ring = Ring(group_name, q.shape[1], documents, causal)
    scale = 1 / math.sqrt(q.shape[-1])
    missing = q.shape[-1] - v.shape[-1]
    queries, out, gradient = heads_first(q, F.pad(out, (0, missing)), F.pad(gradient, (0, missing)))
    dq = torch.zeros_like(q, dtype=lse.dtype)
    (dq_heads,) = heads_first(dq)
    buffer = pack(k, v)
    sums = torch.zeros_like(buffer, dtype=lse.dtype)
    coming, work = buffer, list[dist.Work]()
    coming_sums, work_sums = sums, list[dist.Work]()
    for index in range(ring.count):
        if index + 1 < ring.count:
            coming, work = ring.send_on(buffer)
        todo = ring.round(index)
        keys, values = heads_first(*unpack(buffer, k, v))
        part_q, part_k, part_v = blockwise.backward(
            gradient[:, :, todo.queries],
            queries[:, :, todo.queries],
            *expand(keys[:, :, todo.keys], values[:, :, todo.keys], queries),
            out[:, :, todo.queries],
            lse[:, :, todo.queries].contiguous(),
            scale=scale,
            causal=todo.causal and documents is None,
            visible=ring.visible(index),
        )
        dq_heads[:, :, todo.queries] += part_q
        if index > 0:
            finish(work_sums)
            sums = coming_sums
        dk, dv = heads_first(*unpack(sums, k, v))
        dk[:, :, todo.keys] += fold(part_k.to(dk.dtype), dk)
        dv[:, :, todo.keys] += fold(part_v.to(dv.dtype), dv)
        coming_sums, work_sums = ring.send_on(sums)
        if index + 1 < ring.count:
            finish(work)
            buffer = coming
    finish(work_sums)
    dk, dv = unpack(coming_sums, k, v)
    return dq.to(q.dtype), dk.to(k.dtype, copy=True), dv.to(v.dtype, copy=True)


@ring_attention.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None, causal: bool, group_name: str
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(q.dtype, torch.float32)
    batch, num_tokens, num_heads, _ = q.shape
    out = q.new_empty((batch, num_tokens, num_heads, v.shape[-1]))
    return out, q.new_empty((batch, num_heads, num_tokens), dtype=wide)


@ring_attention_backward.register_fake
def _(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    documents: Tensor | None,
    causal: bool,
    group_name: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, documents, causal, group_name = inputs
    ctx.save_for_backward(q, k, v, documents, *output)
    ctx.causal, ctx.group_name = causal, group_name


def differentiate(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, documents, out, lse = ctx.saved_tensors
    parts = ring_attention_backward(
        gradients[0].contiguous(), q, k, v, out, lse, documents, ctx.causal, ctx.group_name
    )
    return *parts, None, None, None


ring_attention.register_autograd(differentiate, setup_context=keep)
OPERATION = torch.ops.parctl.ring_attention.default  # as dispatch modes see it
