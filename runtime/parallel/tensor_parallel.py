"""Tensor parallelism (1909.08053), with sequence parallelism (2205.05198) when asked.

The first projection of a pair is split by outputs, the second by inputs, so a pair of matmuls needs
one exchange::

    TP     x ----copy----> split outputs, split inputs --reduce--> x
    TP+SP  x/tp --gather-> split outputs, split inputs --scatter-> x/tp

Under SP the stream between the pairs holds S/tp tokens per rank, so norms and dropout are split
too. The embedding is split over the vocabulary, the head over its outputs: logits stay split
(`runtime.model.loss`).

Parameters are DTensors, so that FSDP, the optimizer and checkpoints know their whole shapes; the
arithmetic runs on local tensors, because dispatching every operation through DTensor took a quarter
of a small model's CPU time.

Parameters that are whole on every rank but see only a part of the work (norms, positions and biases
of the stream under SP, shared key and value heads) end a backward pass with a part of their
gradient. Their names are returned, and `sum_gradients` adds them up in one all-reduce per step.
"""

from collections.abc import Iterable
from functools import partial
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.distributed.tensor.placement_types import Placement

from parctl.runtime.model.attention import Attention
from parctl.runtime.model.dropout import Dropout
from parctl.runtime.model.feed_forward import FeedForward
from parctl.runtime.model.latent_attention import LatentAttention
from parctl.runtime.model.linear import Exchange, Linear
from parctl.runtime.model.relative import RelativeBias
from parctl.runtime.model.transformer import Block, Embedding, Positions, Transformer
from parctl.runtime.parallel import shared_memory
from parctl.runtime.parallel.collectives import Copy, Gather, Reduce, Scatter, sum_in_place

OUTPUTS, INPUTS, WHOLE = Shard(0), Shard(1), Replicate()
STREAM = (
    "norm.weight",
    "norm.bias",
    "positions.weight",
    "wo.bias",
    "w_down.bias",
    "router.weight",
    "projection.weight",
)

# whole on every rank, and read by its own heads only
BEFORE_HEADS = (
    "attention.q_norm.weight",
    "attention.k_norm.weight",
    "attention.kv_norm.weight",
    "wq_down.weight",
    "wkv_down.weight",
)


def apply(model: Transformer, tp: DeviceMesh, *, sequence_parallel: bool) -> frozenset[str]:
    """Split the model over `tp` in place, on the meta device.

    Returns the names of parameters whose gradient is to be summed over tp.
    """
    group = tp.get_group()
    shared_memory.connect(tp)
    enter: Exchange = partial(call, Gather if sequence_parallel else Copy, group)
    leave: Exchange = partial(call, Scatter if sequence_parallel else Reduce, group)

    if isinstance(model.embedding, Embedding):
        split_embedding(model.embedding, tp, leave)
    if model.head is not None:
        split(model.head, tp, OUTPUTS)
    model.enter_head = model.enter_memory = enter
    model.tie()
    shared_heads = model.model.num_kv_heads % tp.size() != 0
    for block in model.all_blocks():
        assert isinstance(block, Block)
        block.attention.enter = enter
        if isinstance(block.attention, LatentAttention):
            split_latent_attention(block.attention, tp, leave)
        else:
            split_attention(block.attention, tp, leave, shared_heads=shared_heads)
        if block.cross_attention is not None:
            block.cross_attention.enter = enter
            split_attention(block.cross_attention, tp, leave, shared_heads=shared_heads)
        feed_forward = block.feed_forward if block.moe is None else block.moe.shared
        if feed_forward is not None:
            split_feed_forward(feed_forward, tp, enter, leave)
    for module in model.modules():
        if isinstance(module, RelativeBias):
            set_parameter(module, "weight", distribute_tensor(module.weight.data, tp, [Shard(1)]))
    make_whole(model, tp)
    if sequence_parallel:
        split_sequence(model, tp)

    summed = (*STREAM, *BEFORE_HEADS) if sequence_parallel else BEFORE_HEADS
    if shared_heads:
        summed = (*summed, "wk.weight", "wk.bias", "wv.weight", "wv.bias")
    return frozenset(name for name, _ in model.named_parameters() if name.endswith(summed))


def call(function: type[torch.autograd.Function], group: dist.ProcessGroup, x: Tensor) -> Tensor:
    result: Tensor = function.apply(x, group)  # type: ignore[no-untyped-call]
    return result


def split(linear: Linear, tp: DeviceMesh, dim: Placement, leave: Exchange | None = None) -> None:
    """Split a layer by outputs, or by inputs: then `leave` adds up parts, and the bias is whole."""
    set_parameter(linear, "weight", distribute_tensor(linear.weight.data, tp, [dim]))
    if dim == INPUTS:
        assert leave
        linear.leave = leave
    elif linear.bias is not None:
        set_parameter(linear, "bias", distribute_tensor(linear.bias.data, tp, [OUTPUTS]))


def split_attention(
    attention: Attention, tp: DeviceMesh, leave: Exchange, *, shared_heads: bool
) -> None:
    """Give each rank its heads.

    With fewer key/value heads than ranks their weights stay whole, and a rank computes the one that
    its queries attend to.
    """
    tp_rank, tp_size = tp.get_local_rank(), tp.size()
    attention.tp_rank = tp_rank
    split(attention.wq, tp, OUTPUTS)
    split(attention.wo, tp, INPUTS, leave)
    for linear in (attention.wk, attention.wv):
        if not shared_heads:
            split(linear, tp, OUTPUTS)
            continue
        num_heads = linear.out_features // attention.head_dim
        assert tp_size % num_heads == 0, (tp_size, num_heads)
        head = tp_rank * num_heads // tp_size
        linear.rows = slice(head * attention.head_dim, (head + 1) * attention.head_dim)


def split_latent_attention(attention: LatentAttention, tp: DeviceMesh, leave: Exchange) -> None:
    """Give each rank its heads. All ranks compute the latents, which every head reads."""
    attention.tp_rank = tp.get_local_rank()
    for name, linear in attention.named_children():
        if name in ("wq", "wq_up", "wkv_up"):
            split(cast(Linear, linear), tp, OUTPUTS)
    split(attention.wo, tp, INPUTS, leave)


def split_feed_forward(
    feed_forward: FeedForward, tp: DeviceMesh, enter: Exchange, leave: Exchange
) -> None:
    feed_forward.enter = enter
    for name, linear in feed_forward.named_children():
        split(cast(Linear, linear), tp, INPUTS if name == "w_down" else OUTPUTS, leave)


def split_embedding(embedding: Embedding, tp: DeviceMesh, leave: Exchange) -> None:
    weight = distribute_tensor(embedding.weight.data, tp, [Shard(0)])
    set_parameter(embedding, "weight", weight)
    embedding.first_row = first_of_part(weight.shape[0], tp)
    embedding.leave = leave


def first_of_part(size: int, tp: DeviceMesh) -> int:
    """Return where this rank's part of a split dim begins."""
    _, offset = compute_local_shape_and_global_offset((size,), tp, [Shard(0)])
    return int(offset[0])


def make_whole(model: Transformer, tp: DeviceMesh) -> None:
    """Put the parameters that are not split on the mesh too: all then live on one mesh."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not isinstance(parameter, DTensor):
                whole = DTensor.from_local(parameter.data, tp, [WHOLE], run_check=False)
                set_parameter(module, name, whole)


def set_parameter(module: nn.Module, name: str, tensor: Tensor) -> None:
    module.register_parameter(name, nn.Parameter(tensor))


def split_sequence(model: Transformer, tp: DeviceMesh) -> None:
    """Tell the modules of the stream that they see this rank's tokens only."""
    model.stream_shards = tp.size()
    for module in model.modules():
        if isinstance(module, Dropout):
            module.tp_rank = tp.get_local_rank()
        elif isinstance(module, Positions):
            module.shard = (tp.get_local_rank(), tp.size())


def sum_gradients(parameters: Iterable[nn.Parameter], tp: DeviceMesh) -> None:
    """Add up gradients over tp. One all-reduce of all of them together."""
    gradients: list[Tensor] = []
    for parameter in parameters:
        assert isinstance(parameter.grad, DTensor)
        gradients.append(parameter.grad.to_local())
    sum_in_place(gradients, tp.get_group())
