"""Reduce-scatter of half-precision gradients that are added up in float32 where they arrive.

torch turns bfloat16 gradients into float32 and then sends them. Here they cross as they are, by an
all-to-all, and every rank adds up the parts of its own shard in float32: the same terms, in half
the bytes. Megatron-LM has it as `--ddp-reduce-scatter-with-fp32-accumulation`. On CPUs it counts
twice: gloo's reduce-scatter is an all-reduce of everything, of which all but the shard is dropped.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter

from parctl.runtime.model.parts import parts


class GradientSum(ReduceScatter):
    """FSDP2's reduce-scatter, for units whose gradients come in `sent` from every backward pass.

    Not for gradients that a rank has added up itself before: those are float32.
    """

    def __init__(self, sent: torch.dtype) -> None:
        self.sent = sent
        self.filling = False

    def allocate(self, size: Sequence[Any], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """What FSDP fills and what it takes, asked for in turns; `dtype` is that of the sum."""
        self.filling = not self.filling
        return torch.empty(*size, dtype=self.sent if self.filling else dtype, device=device)

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> None:
        """Add up `[n, shard]` of n ranks. Nothing is left under way."""
        assert op == dist.ReduceOp.SUM and not async_op  # all that parctl has FSDP ask for
        arrived = torch.empty_like(input_tensor)
        dist.all_to_all_single(arrived, input_tensor, group=group)
        shares = arrived.chunk(group.size())
        for part in parts(output_tensor):
            total = output_tensor[part].copy_(shares[0][part])
            for share in shares[1:]:
                total += share[part].to(total.dtype)
