"""The weight gradients of linear layers, put off until a schedule has time for them.

A backward pass makes two gradients of `y = x W^T`: that of x, which the stage before waits for, and
that of W, which nobody waits for. Zero-bubble schedules (2401.10241) compute the second where a
rank would idle. `SplitLinear` keeps what it needs, and `finish` computes it::

    I    dx = dy W            x and dy are kept
    W    dW = dy^T x

torch.distributed.pipelining splits by cutting the autograd graph at every weight instead. It walks
the whole graph in Python for each micro-batch, and a block that recomputes runs its forward again
for every weight in it. Here a block is recomputed once, in I. Parameters that are no matrix of a
linear layer (norms, biases, the embedding) are cheap, and stay in I.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from parctl.runtime.model.linear import Linear
from parctl.runtime.model.product import product
from parctl.runtime.parallel import data_parallel
from parctl.runtime.parallel.mesh import RankMesh

Pending = list[tuple[Tensor, Tensor, Tensor]]  # weight, input, gradient of the output


class WeightGradients:
    """What the backward passes of one stage have put off."""

    def __init__(self, stage: nn.Module) -> None:
        self._pending: Pending = []
        for module in stage.modules():
            if isinstance(module, Linear):
                module.multiply = self.multiply

    # the list of what is put off is no part of a compiled graph
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return `x W^T`, whose backward pass leaves W's gradient to `finish`."""
        if not (torch.is_grad_enabled() and x.requires_grad and weight.requires_grad):
            return product(x, weight)
        result: Tensor = SplitLinear.apply(x, Held(weight), self._pending)  # type: ignore[no-untyped-call]
        return result

    def take(self) -> Pending:
        """Return what has been put off since the last call."""
        pending = self._pending.copy()
        self._pending.clear()
        return pending


class Held:
    """Hides a weight from autograd, which would otherwise want its gradient at once."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight


class SplitLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, held: Held, pending: Pending) -> Tensor:
        ctx.save_for_backward(x)
        ctx.held, ctx.pending = held, pending
        return product(x, held.weight.detach())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        weight = ctx.held.weight
        ctx.pending.append((weight, x.detach(), gradients[0]))
        return product(gradients[0], weight.detach().mT), None, None


def finish(pending: Iterable[tuple[Tensor, Tensor, Tensor]]) -> None:
    """Compute what was put off, and add it to the parameters' gradients."""
    for weight, x, gradient in pending:
        total = product(gradient.flatten(0, -2).mT, x.flatten(0, -2).mT)
        # through the graph from the weight to its parameter: under tp a DTensor, of shared heads
        # some rows
        torch.autograd.backward([weight], [total])


def hold_exchange(stage: nn.Module) -> None:
    """Let the coming backward pass exchange nothing over the data axes: it makes only a part."""
    if isinstance(stage, FSDPModule):
        stage.set_is_last_backward(False)
        stage.set_requires_gradient_sync(False)


def exchange(stage: nn.Module, mesh: RankMesh, *, last: bool) -> None:
    """Exchange gradients over the data axes as at the end of a whole backward pass.

    FSDP does so from hooks of the backward pass, which is over when the last gradients are made.
    Replicas of shards exchange nothing before the last one: what FSDP keeps for their all-reduce is
    one flat sum, which every micro-batch would have to reach with gradients of the same parameters,
    while a norm's gradient may have gone with another micro-batch's.
    """
    if not isinstance(stage, FSDPModule):
        return
    finish_backward = stage._get_fsdp_state()._root_post_backward_final_callback
    hold_exchange(stage)
    finish_backward()  # of mixed precision: what came late joins what is summed in float32
    if last or not (mesh.axis("dp") and mesh.axis("fsdp")):
        data_parallel.set_gradient_exchange(stage, mesh, last=last)
        finish_backward()
