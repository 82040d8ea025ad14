"""The exchanges of tensor parallelism, each with its mirror image in the backward pass.

    copy      forward: nothing,            backward: all-reduce
    reduce    forward: all-reduce,         backward: nothing
    gather    forward: all-gather,         backward: reduce-scatter     (over the tokens, dim 1)
    scatter   forward: reduce-scatter,     backward: all-gather         (over the tokens, dim 1)

`copy` and `gather` stand where split work begins, `reduce` and `scatter` where its parts are added
up. torch's functional collectives are used, because selective recomputation can see and keep their
results.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

functional = torch.ops._c10d_functional
TOKENS = 1  # the dim of [B, S, D] that SP splits


def all_reduce(x: Tensor, group: dist.ProcessGroup, operation: str = "sum") -> Tensor:
    result: Tensor = functional.wait_tensor(
        functional.all_reduce(x.contiguous(), operation, group.group_name)
    )
    return result


def all_gather_tokens(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """`[B, S/n, D]` to `[B, S, D]`."""
    size = group.size()
    stacked = functional.wait_tensor(
        functional.all_gather_into_tensor(x.contiguous(), size, group.group_name)
    )
    return torch.cat(stacked.chunk(size), dim=TOKENS)


def reduce_scatter_tokens(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """`[B, S, D]`, a part of the sum on each rank, to `[B, S/n, D]`, the sum of own tokens."""
    size = group.size()
    stacked = torch.cat(x.chunk(size, dim=TOKENS))
    result: Tensor = functional.wait_tensor(
        functional.reduce_scatter_tensor(stacked, "sum", size, group.group_name)
    )
    return result


class Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return all_reduce(gradients[0], ctx.group), None


class Reduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        return all_reduce(x, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return all_gather_tokens(x, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return reduce_scatter_tokens(gradients[0], ctx.group), None


class Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return reduce_scatter_tokens(x, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return all_gather_tokens(gradients[0], ctx.group), None
