"""The exchanges of tensor parallelism, each with its mirror image in the backward pass.

    copy      forward: nothing,            backward: all-reduce
    reduce    forward: all-reduce,         backward: nothing
    gather    forward: all-gather,         backward: reduce-scatter     (over the tokens, dim 1)
    scatter   forward: reduce-scatter,     backward: all-gather         (over the tokens, dim 1)
    split     forward: own part,           backward: all-gather         (over the tokens, dim 1)
    join      forward: all-gather,         backward: own part           (over the tokens, dim 1)
    swap rows forward: all-to-all,         backward: all-to-all the other way

`copy` and `gather` stand where split work begins, `reduce` and `scatter` where its parts are added
up. `split` and `join` deal out tokens that all ranks of the group hold. torch's functional
collectives are used, because selective recomputation can see and keep their results, and on the
CPUs of one node operations of our own, for the same reason (`runtime.parallel.shared_memory`).
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parctl.runtime.parallel import shared_memory
from parctl.runtime.parallel.shared_memory import shares_memory

functional = torch.ops._c10d_functional
TOKENS = 1  # the dim of [B, S, D] that SP splits


def all_reduce(x: Tensor, group: dist.ProcessGroup, operation: str = "sum") -> Tensor:
    if operation == "sum" and shares_memory(group.group_name):
        result: Tensor = shared_memory.all_reduce(x, group.group_name)
        return result
    result = functional.wait_tensor(
        functional.all_reduce(x.contiguous(), operation, group.group_name)
    )
    return result


def sum_in_place(tensors: Sequence[Tensor], group: dist.ProcessGroup) -> None:
    """All-reduce many tensors of one type, together."""
    shared = shared_memory.of(group)
    if shared is not None:
        shared.sum_in_place(tensors)
    elif tensors:
        total = all_reduce(torch.cat([x.reshape(-1) for x in tensors]), group)
        for x, part in zip(tensors, torch.split(total, [x.numel() for x in tensors]), strict=True):
            x.copy_(part.view_as(x))


def all_gather_tokens(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """`[B, S/n, D]` to `[B, S, D]`."""
    if shares_memory(group.group_name):
        result: Tensor = shared_memory.all_gather(x, group.group_name, TOKENS)
        return result
    size = group.size()
    stacked = functional.wait_tensor(
        functional.all_gather_into_tensor(x.contiguous(), size, group.group_name)
    )
    return torch.cat(stacked.chunk(size), dim=TOKENS)


def reduce_scatter_tokens(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """`[B, S, D]`, a part of the sum on each rank, to `[B, S/n, D]`, the sum of own tokens."""
    if shares_memory(group.group_name):
        result: Tensor = shared_memory.reduce_scatter(x, group.group_name, TOKENS)
        return result
    size = group.size()
    stacked = torch.cat(x.chunk(size, dim=TOKENS))
    result = functional.wait_tensor(
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


def own_tokens(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """`[B, S, ...]`, equal on all ranks, to this rank's `[B, S/n, ...]`."""
    return x.chunk(group.size(), dim=TOKENS)[group.rank()].contiguous()


def all_to_all_rows(
    x: Tensor, send: Sequence[int], receive: Sequence[int], group: dist.ProcessGroup
) -> Tensor:
    """Send the first `send[0]` rows to rank 0 of the group, and so on, and take what all send."""
    result: Tensor = functional.wait_tensor(
        functional.all_to_all_single(x.contiguous(), receive, send, group.group_name)
    )
    return result


class Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return own_tokens(x, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return all_gather_tokens(gradients[0], ctx.group), None


class Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return all_gather_tokens(x, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return own_tokens(gradients[0], ctx.group), None


class SwapRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, send: Sequence[int], receive: Sequence[int], group: dist.ProcessGroup
    ) -> Tensor:
        ctx.send, ctx.receive, ctx.group = send, receive, group
        return all_to_all_rows(x, send, receive, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        back = all_to_all_rows(gradients[0], ctx.receive, ctx.send, ctx.group)
        return back, None, None, None


def swap_rows(
    x: Tensor, send: Sequence[int], receive: Sequence[int], group: dist.ProcessGroup
) -> Tensor:
    """`all_to_all_rows`, and in the backward pass the same the other way round."""
    result: Tensor = SwapRows.apply(x, send, receive, group)  # type: ignore[no-untyped-call]
    return result
