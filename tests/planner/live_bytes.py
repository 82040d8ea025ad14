"""Count what the real runtime keeps in memory, on one process that plays rank 0 of any number.

A fake process group answers every collective at once with tensors of the right shape, and
`LiveBytes` sees every operator and follows each storage it makes until it is freed. Numbers are
exact and do not depend on the allocator.
"""

import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from parctl.planner.stages import split_layers
from parctl.recipes.spec import Recipe
from parctl.runtime.data.batches import MicroBatch
from parctl.runtime.model import parts
from parctl.runtime.optimizer import make_optimizer
from parctl.runtime.parallel.mesh import build_mesh
from parctl.runtime.parallel.parallelize import parallelize
from parctl.runtime.parallel.passes import make_passes
from parctl.topology.layout import Layout, Slot


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's is untyped
    """Bytes of storages made while it is on, `known` ones left out: alive now, and most at once.

    Storages are summed anew after every operator, because FSDP frees them by resizing to nothing.
    """

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's is untyped
        self.peak = 0
        self.storages: dict[int, weakref.ref[Any]] = {}
        self.known = {_local(tensor).untyped_storage()._cdata for tensor in known}

    @property
    def now(self) -> int:
        alive = [reference() for reference in self.storages.values()]
        return sum(storage.nbytes() for storage in alive if storage is not None)

    def has_seen(self, tensor: torch.Tensor) -> bool:
        reference = self.storages.get(_local(tensor).untyped_storage()._cdata)
        return reference is not None and reference() is not None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                # operators on DTensors are seen whole, so look into what they return
                storage = _local(leaf).untyped_storage()
                key = storage._cdata
                reference = self.storages.get(key)
                if key not in self.known and (reference is None or reference() is None):
                    self.storages[key] = weakref.ref(storage)
        self.peak = max(self.peak, self.now)
        return result


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Bytes on rank 0."""

    weights: int
    gradients: int
    optimizer: int
    gathered: int  # weights that are whole, or copied, from forward to backward
    activations: int  # kept from forward to backward, the logits left out
    peak: int  # most at once in a micro-batch, weights and optimizer state left out


@contextmanager
def fake_world(size: int) -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def measure(recipe: Recipe, axes: Mapping[str, int]) -> Measured:
    """Run micro-batches of the recipe forward and backward on rank 0 of the given axes."""
    model, train = recipe.model, recipe.train
    assert model is not None and train is not None
    size = prod(axes.values())
    layout = Layout(
        axes=axes,
        expert_axes=None,
        ranks=tuple(range(size)),
        slots=tuple(
            Slot(rank=rank, node="a", node_rank=0, local_rank=rank, gpu=rank)
            for rank in range(size)
        ),
        proofs=(),
        explain=(),
    )
    with fake_world(size):
        mesh = build_mesh(layout, torch.device("cpu"), wrap_alone=train.precision == "bf16")
        parallel = parallelize(model, recipe.parallelism, train, mesh, split_layers(model, 1))
        passes = make_passes(parallel, recipe.parallelism, train)
        optimizer = make_optimizer(parallel.parameters(), train.optimizer)
        own = train.seq_len // mesh.sizes["cp"]
        tokens = torch.zeros(train.micro_batch, own, dtype=torch.int64)
        batch = MicroBatch(tokens=tokens, targets=tokens)
        parameters = list(parallel.parameters().values())
        parts.CACHED_ELEMENTS = 1 << 10  # to this model what the usual part is to a real one
        with LiveBytes(parameters) as live:
            # micro-batches after the first find gradients there
            passes.train([batch], step=1, num_tokens=1)
            before = live.now
            (stage,) = parallel.stages
            logits = stage(tokens)
            # what a module calls its parameters between the passes is what it has gathered
            whole = [part for part in stage.parameters() if live.has_seen(part)]
            gathered = _bytes(whole)
            held = live.now - before - _bytes([logits]) - gathered
            del logits
            passes.train([batch], step=1, num_tokens=1)
        return Measured(
            weights=_bytes(parameters),
            gradients=_bytes([parameter.grad for parameter in parameters]),
            optimizer=_bytes(
                [
                    value
                    for state in optimizer.state.values()
                    for name, value in state.items()
                    if name != "step"
                ]
            ),
            gathered=gathered,
            activations=held,
            peak=live.peak,
        )


def _bytes(tensors: list[Any]) -> int:
    total = 0
    for tensor in tensors:
        total += _local(tensor).numel() * tensor.element_size()
    return total


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor
