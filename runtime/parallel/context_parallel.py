"""Context parallelism: the ranks of a cp group hold parts of the same sequences.

All but attention works on tokens one by one, so it needs nothing but their positions
(`runtime.model.sequence`). Attention crosses the ranks in one of two ways:

    ring     keys and values travel round the group, queries stay (`ring_attention`)
    ulysses  all-to-all: from all heads of own tokens to own heads of all tokens, and back
             (2309.14509); with fewer key/value heads than ranks they are repeated

Bytes sent per rank and layer, for S tokens per rank and e bytes per element: a ring sends
2 (cp - 1) S K H e forward and twice that backward, Ulysses 2 S H (N + K) e (cp - 1) / cp each way.

Weights are equal on all ranks of the group. Their gradients are parts of a sum, which the data axes
add up together with their own (`RankMesh.axis`).

Shapes: as in `runtime.model.attention`, and C ranks.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from parctl.recipes.spec import ParallelismSpec
from parctl.runtime.model.attention import Kernel, LocalKernel, SelfAttention
from parctl.runtime.model.sequence import WHOLE, SequencePart
from parctl.runtime.model.transformer import Transformer
from parctl.runtime.parallel.collectives import swap_rows
from parctl.runtime.parallel.ring_attention import RingKernel

functional = torch.ops._c10d_functional


def sequence_part(cp: DeviceMesh | None, parallelism: ParallelismSpec) -> SequencePart:
    """Return which tokens this rank holds: of both ends of a sequence in a ring."""
    if cp is None:
        return WHOLE
    return SequencePart(
        index=cp.get_local_rank(), count=cp.size(), zigzag=parallelism.cp_kind == "ring"
    )


def apply(stage: Transformer, cp: DeviceMesh, parallelism: ParallelismSpec) -> None:
    """Let the attention of every block cross the ranks of `cp`, in place."""
    stage.sequence = sequence_part(cp, parallelism)
    kernel: Kernel
    if parallelism.cp_kind == "ring":
        kernel = RingKernel(cp.get_group(), stage.sequence, causal=stage.model.causal)
    else:
        kernel = UlyssesKernel(cp.get_group(), causal=stage.model.causal)
    stage.kernel = kernel
    for module in stage.modules():
        if isinstance(module, SelfAttention):
            module.kernel = kernel


class UlyssesKernel(LocalKernel):
    """The local kernel between two all-to-alls. Masks are those of the whole sequence."""

    def __init__(self, group: dist.ProcessGroup, *, causal: bool) -> None:
        super().__init__(causal=causal)
        self._group = group

    def __call__(
        self, q_BSNH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, mask: Tensor | None, *, dropout: float
    ) -> Tensor:
        count = self._group.size()
        num_heads = k_BSKH.shape[2]
        if num_heads < count:
            k_BSKH = k_BSKH.repeat_interleave(count // num_heads, dim=2)
            v_BSKH = v_BSKH.repeat_interleave(count // num_heads, dim=2)
        q, k, v = self._gather_tokens(q_BSNH, k_BSKH, v_BSKH)
        return self._gather_heads(super().__call__(q, k, v, mask, dropout=dropout))

    def _gather_tokens(self, *parts_BSNH: Tensor) -> list[Tensor]:
        """All heads `[B, S, N, H]` to own heads `[B, C S, N/C, H]`, all parts in one exchange."""
        count, (batch, num_tokens) = self._group.size(), parts_BSNH[0].shape[:2]
        per_rank = [
            x.reshape(batch, num_tokens, count, -1).permute(2, 0, 1, 3).flatten(1)
            for x in parts_BSNH
        ]
        sizes = [x.shape[1] for x in per_rank]
        received = torch.split(swap(torch.cat(per_rank, dim=1), self._group), sizes, dim=1)
        return [
            x.view(count, batch, num_tokens, -1, part.shape[3])
            .transpose(0, 1)
            .reshape(batch, count * num_tokens, -1, part.shape[3])
            for x, part in zip(received, parts_BSNH, strict=True)
        ]

    def _gather_heads(self, x_BTNH: Tensor) -> Tensor:
        """Own heads `[B, C S, N/C, H]` to all heads `[B, S, N, H]`."""
        batch, _, num_heads, width = x_BTNH.shape
        per_rank = x_BTNH.view(batch, self._group.size(), -1, num_heads, width).transpose(0, 1)
        return swap(per_rank, self._group).permute(1, 2, 0, 3, 4).flatten(2, 3)


def swap(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Send `x[i]` to rank i, and put what comes from rank i there."""
    ones = [1] * group.size()
    return swap_rows(x, ones, ones, group)
