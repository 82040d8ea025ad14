"""The exchanges of FSDP's shards on CPUs: its all-gather and its reduce-scatter.

Ranks of one node use shared memory for both. Others use gloo, whose reduce-scatter is an all-reduce
of everything, of which all but the shard is dropped.

torch turns bfloat16 gradients into float32 and then sends them. Here they cross as they are, and
every rank adds up the parts of its own shard in float32: the same terms, in half the bytes.
Megatron-LM has it as `--ddp-reduce-scatter-with-fp32-accumulation`. Between nodes that is an
all-to-all.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp._fully_shard._fsdp_api import AllGather, ReduceScatter

from parctl.runtime.parallel import shared_memory


class ParameterGather(AllGather):
    """FSDP2's all-gather."""

    def allocate(self, size: Sequence[Any], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        async_op: bool = False,
    ) -> None:
        """Gather `[shard]` of n ranks to `[n shard]`, where our own lies already."""
        assert not async_op  # nothing that parctl has FSDP ask for
        shared = shared_memory.of(group)
        if shared is None:
            dist.all_gather_single(output_tensor, input_tensor, group=group)
            return
        shared.all_gather(input_tensor, output_tensor.chunk(group.size()))


class GradientSum(ReduceScatter):
    """FSDP2's reduce-scatter.

    `sent` is the type that a unit's gradients come in from every backward pass. None where it is
    that of the sum, or where ranks add up gradients themselves before: those are float32.
    """

    def __init__(self, sent: torch.dtype | None) -> None:
        self.sent = sent
        self.filling = False

    def allocate(self, size: Sequence[Any], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """What FSDP fills and what it takes, asked for in turns; `dtype` is that of the sum."""
        self.filling = not self.filling
        sent = self.sent if self.filling else None
        return torch.empty(*size, dtype=sent or dtype, device=device)

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> None:
        """Add up `[n shard]` of n ranks to `[shard]`. Nothing is left under way."""
        assert op == dist.ReduceOp.SUM and not async_op  # all that parctl has FSDP ask for
        shared = shared_memory.of(group)
        if shared is not None:
            parts = input_tensor.view(group.size(), -1)
            shared.reduce_scatter(parts, output_tensor.view(1, -1), dim=0)
        elif self.sent is None:
            dist.reduce_scatter_single(output_tensor, input_tensor, group=group)
        else:
            arrived = torch.empty_like(input_tensor)
            dist.all_to_all_single(arrived, input_tensor, group=group)
            shared_memory.add_up(arrived.chunk(group.size()), output_tensor)
