"""The embedding on two pipeline stages: the first reads it, the last uses it as its head.

The last stage works with a copy that is no parameter of the model: it is filled before a step's
first pass, and after the last one its gradient is added to that of the embedding. So the optimizer,
the gradient norm and checkpoints know one embedding, on the first stage::

    before   first stage --weight--> last stage
    after    first stage <--gradient-- last stage       two sends of a vocabulary x dim per step

The two stages split the weight alike over the other axes, so each rank exchanges its own part.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from parctl.planner.schedules import stage_ranks
from parctl.recipes.spec import ModelSpec, ParallelismSpec
from parctl.runtime.model.transformer import Transformer, shares_embedding
from parctl.runtime.parallel.mesh import RankMesh

NAME = "embedding.weight"
TAG = 1 << 20  # above those of the stream


class TiedEmbedding:
    """This rank's end of the exchange. `own` is on the first stage's rank, `copy` on the last's."""

    def __init__(
        self,
        group: dist.ProcessGroup,
        *,
        own: nn.Parameter | None,
        copy: nn.Parameter | None,
        first: int,
        last: int,
    ) -> None:
        self._own, self._copy = own, copy
        self._first, self._last = first, last  # pipeline ranks
        self._group = group

    def refresh(self) -> None:
        """Fill the copy from the embedding."""
        with torch.no_grad():
            self._move(
                None if self._own is None else own_part(self._own),
                None if self._copy is None else own_part(self._copy),
                self._first,
                self._last,
            )

    def add_gradient(self) -> None:
        """Add the copy's gradient to the embedding's, and forget it."""
        gradient = received = None
        if self._copy is not None:
            assert self._copy.grad is not None
            gradient = own_part(self._copy.grad)
            self._copy.grad = None
        if self._own is not None:
            assert self._own.grad is not None
            received = torch.empty_like(own_part(self._own.grad))
        self._move(gradient, received, self._last, self._first)
        if self._own is not None:
            assert self._own.grad is not None and received is not None
            own_part(self._own.grad).add_(received)

    def _move(
        self, source: Tensor | None, target: Tensor | None, sender: int, receiver: int
    ) -> None:
        if source is not None and target is not None:  # a V-shaped schedule: one rank has both
            target.copy_(source)
        elif source is not None:
            dist.send(source.contiguous(), group=self._group, group_dst=receiver, tag=TAG)
        elif target is not None:
            arrived = target if target.is_contiguous() else torch.empty_like(target)
            dist.recv(arrived, group=self._group, group_src=sender, tag=TAG)
            if arrived is not target:
                target.copy_(arrived)


def is_copy(stage: Transformer, name: str) -> bool:
    return name == NAME and not stage.part.first


def connect(
    stages: Sequence[Transformer], model: ModelSpec, parallelism: ParallelismSpec, mesh: RankMesh
) -> TiedEmbedding | None:
    """Return this rank's end; None when it has none."""
    pp = mesh.axis("pp")
    if pp is None or not shares_embedding(model):
        return None
    own = copy = None
    for stage in stages:
        if stage.part.first:
            own = stage.get_parameter(NAME)
        elif stage.embedding is not None:
            copy = stage.get_parameter(NAME)
    if own is None and copy is None:
        return None
    ranks = stage_ranks(parallelism, pp.size())
    return TiedEmbedding(pp.get_group(), own=own, copy=copy, first=ranks[0], last=ranks[-1])


def own_part(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
