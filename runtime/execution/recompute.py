"""Recomputation of activations (1604.06174): keep less, and compute it again in the backward pass.

- `full`: a block keeps its input only.
- `partitioned`: each TP rank keeps its share of the tokens of that input, and gathers the others
  when the block is run again (1910.02054, section 6.1). Under SP the input is split already.
- `selective`: a block keeps the results of matmuls, attention and reductions over tp, which are
  dear to repeat, and recomputes norms, rotary embedding, activations, casts and the gathering of
  tokens under SP, which are cheap for the memory they free.

What `selective` keeps of the two matmuls that end a branch (`LAST_MATMULS`)::

    attention.wo           the sum over tp; each rank's part of it is neither kept nor made again
    cross_attention.wo     the same
    feed_forward.w_down    nothing: no gradient needs it, and running again stops before it. With
                           dropout, whose mask comes after it, as for wo.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import DeviceMesh
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from parctl.recipes.spec import TrainSpec
from parctl.runtime.execution.offload import to_device, to_host
from parctl.runtime.model.linear import Linear, nothing
from parctl.runtime.model.product import onednn_linear
from parctl.runtime.model.short_attention import OPERATION as SHORT_ATTENTION
from parctl.runtime.model.transformer import Transformer
from parctl.runtime.parallel import shared_memory
from parctl.runtime.parallel.collectives import TOKENS, all_gather_tokens
from parctl.runtime.parallel.ring_attention import OPERATION as RING_ATTENTION

WRAPPER_PREFIX = "_checkpoint_wrapped_module."
LAST_MATMULS = ("attention.wo", "cross_attention.wo", "feed_forward.w_down")

aten, collectives = torch.ops.aten, torch.ops._c10d_functional
MATMULS = frozenset(
    {
        aten.mm.default,
        aten.addmm.default,
        aten.bmm.default,
        aten._grouped_mm.default,
        aten._scaled_mm.default,
        onednn_linear.default,
    }
)
EXCHANGES = frozenset(
    {
        collectives.reduce_scatter_tensor.default,
        collectives.all_reduce.default,
        collectives.all_to_all_single.default,
        *shared_memory.SUMS,
    }
)
DEAR = (
    MATMULS
    | EXCHANGES
    | {
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
        RING_ATTENTION,
        SHORT_ATTENTION,
    }
)

Pack = Callable[[Any], Any]


class Selection:
    """What one block keeps under `selective`. It is told which of LAST_MATMULS is running."""

    def __init__(self, block: nn.Module, *, dropout: bool) -> None:
        self.running: Linear | None = None
        modules: Mapping[str, nn.Module] = dict(block.named_modules())
        ends = [modules[name] for name in LAST_MATMULS if name in modules]
        self._unneeded = None if dropout else modules.get(LAST_MATMULS[-1])
        for linear in ends:
            linear.register_forward_pre_hook(self._enter)
            linear.register_forward_hook(self._leave, always_call=True)

    def _enter(self, linear: nn.Module, inputs: Any) -> None:
        assert isinstance(linear, Linear)
        self.running = linear

    def _leave(self, linear: nn.Module, inputs: Any, output: Any) -> None:
        self.running = None

    def keep(self, context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        dear = operation in DEAR
        if dear and self.running is not None:
            dear = self.running is not self._unneeded and not self.is_part(operation)
        return CheckpointPolicy.MUST_SAVE if dear else CheckpointPolicy.PREFER_RECOMPUTE

    def is_part(self, operation: Any) -> bool:
        """Whether the result is a part of a sum over tp."""
        running = self.running
        return running is not None and running.leave is not nothing and operation in MATMULS

    def contexts(self) -> tuple[Any, Any]:
        """Return what the forward pass and its repetition run under."""
        keeping, repeating = create_selective_checkpoint_contexts(self.keep)  # type: ignore[no-untyped-call]
        return keeping, Repetition(SkipParts(self), repeating)


def compiled_contexts() -> Any:
    """Return the same for a compiled block, where no module tells what is running."""
    return create_selective_checkpoint_contexts(list(DEAR))  # type: ignore[no-untyped-call]


class SkipParts(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's is untyped
    """Leaves parts of a sum over tp unwritten: the sum that they went into was kept."""

    def __init__(self, selection: Selection) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._selection = selection

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._selection.is_part(func):
            left, right = args[:2]
            dtype = (kwargs or {}).get("out_dtype", left.dtype)  # of a product in float8
            columns = right.shape[0 if func is onednn_linear.default else 1]  # it is [N, K] there
            return left.new_empty((*left.shape[:-1], columns), dtype=dtype)
        return func(*args, **(kwargs or {}))


class Repetition:
    """Two modes as one: torch's, which hands out what was kept, asks ours for what was not."""

    def __init__(self, ours: TorchDispatchMode, torchs: TorchDispatchMode) -> None:
        self._modes = (ours, torchs)

    def __enter__(self) -> None:
        for mode in self._modes:
            mode.__enter__()  # type: ignore[no-untyped-call]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(kind, error, trace)  # type: ignore[no-untyped-call]


def apply(
    model: Transformer, train: TrainSpec, tp: DeviceMesh | None, *, sequence_parallel: bool
) -> None:
    """Wrap every block as its layer's mode says.

    Parameter names gain WRAPPER_PREFIX, which `canonical_name` takes off again.
    """
    # random states are only put back where something is drawn: on accelerators that waits for them
    draws = model.model.dropout > 0
    places: list[tuple[nn.Module, str]] = [
        (stack, layer) for stack in model.stacks() for layer in stack
    ]
    ahead = [(module, "block") for module in model.mtp.values()]
    for (holder, name), block in zip([*places, *ahead], model.all_blocks(), strict=True):
        # a module that predicts further tokens is one more layer
        mode = train.recompute_of(model.model.num_layers if name == "block" else int(name))
        if mode == "none":
            continue
        if mode == "selective":
            contexts = compiled_contexts
            if not train.compile:
                contexts = Selection(block, dropout=draws).contexts
            wrapped: nn.Module = checkpoint_wrapper(
                block, context_fn=contexts, preserve_rng_state=draws
            )
        else:
            parted = None if mode == "full" or sequence_parallel else tp
            steps = keeping_steps(parted, offload=train.offload_activations)
            wrapped = checkpoint_wrapper(
                block, checkpoint_fn=run_again, steps=steps, preserve_rng_state=draws
            )
        holder.add_module(name, wrapped)


def keeping_steps(tp: DeviceMesh | None, *, offload: bool) -> tuple[tuple[Pack, Pack], ...]:
    """How a block's input is put away, step by step, each with what undoes it."""
    steps: list[tuple[Pack, Pack]] = []
    if tp is not None:
        steps.append((partial(own_tokens, tp), partial(all_gather_tokens, group=tp.get_group())))
    if offload:
        steps.append((to_host, to_device))
    return tuple(steps)


def own_tokens(tp: DeviceMesh, x_BSD: Tensor) -> Tensor:
    """`[B, S, D]` to `[B, S/tp, D]`, as a copy, so that the whole is free to go."""
    return x_BSD.chunk(tp.size(), dim=TOKENS)[tp.get_local_rank()].clone()


def run_again(
    block: nn.Module, *args: Any, steps: tuple[tuple[Pack, Pack], ...], preserve_rng_state: bool
) -> Any:
    """Run a block that keeps its input only, put away by `steps`."""

    def pack(kept: Tensor) -> Any:
        for put_away, _ in steps:
            kept = put_away(kept)
        return kept

    def unpack(kept: Any) -> Tensor:
        for _, fetch in reversed(steps):
            kept = fetch(kept)
        result: Tensor = kept
        return result

    if not steps or not torch.is_grad_enabled():
        return checkpoint(block, *args, use_reentrant=False, preserve_rng_state=preserve_rng_state)
    stream, *others = args  # which all blocks share: they stay as they are
    with saved_tensors_hooks(pack, unpack):
        return checkpoint(
            lambda x: block(x, *others),
            stream,
            use_reentrant=False,
            preserve_rng_state=preserve_rng_state,
        )


def canonical_name(name: str) -> str:
    """Return the name of a parameter in the plain model, which is its name in checkpoints.

    >>> canonical_name("blocks.0._checkpoint_wrapped_module.attention.wq.weight")
    'blocks.0.attention.wq.weight'
    """
    return name.replace(WRAPPER_PREFIX, "")
