"""Weights of linear layers in the order in which oneDNN multiplies with them, on CPUs in float32.

A step that generates has few rows, so its products cost what it costs to read the weights, and
oneDNN brings a plain weight into its own order in every call. Here that is done once: products of
2 to 16 rows take half to three quarters of the time (`benchmarks/inference.py` has the sum of it).

A weight that nothing else reads is kept in that order only, so packing takes no memory.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from parctl.runtime.model.attention import Attention
from parctl.runtime.model.feed_forward import FeedForward
from parctl.runtime.model.linear import Linear, local
from parctl.runtime.model.product import AVAILABLE, onednn_linear
from parctl.runtime.model.transformer import Transformer

ROWS = 64  # oneDNN asks for how many rows; with this order it is fast for 1 to 200
LEAST = 1 << 16  # elements: with smaller weights the call costs more than the product


class Packed:
    """`x W^T` in the place of a layer's own product, which ignores the weight it is given."""

    def __init__(self, weight: Tensor) -> None:
        self._packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS)
        self.num_bytes = weight.nbytes

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        product: Tensor = onednn_linear(x, self._packed, None, "none", [], "")
        return product


def pack(model: Transformer) -> None:
    """Pack a loaded stage's weights where that is faster."""
    for layer in linears(model):
        weight = local(layer.weight)
        if not AVAILABLE or weight.device.type != "cpu" or weight.dtype != torch.float32:
            continue
        own = weight if layer.rows is None else weight[layer.rows]
        if own.numel() < LEAST:
            continue
        layer.multiply = Packed(own)
        tied = layer is model.head and model.model.tied_embeddings  # the embedding looks rows up
        if layer.rows is None and not tied:
            layer.weight = nn.Parameter(weight.new_empty(0, weight.shape[1]), requires_grad=False)


def weight_bytes(model: Transformer) -> int:
    """Bytes of the parameters on this rank, packed ones included."""
    plain = sum(local(one).nbytes for one in model.parameters())
    packed = [layer.multiply for layer in linears(model) if local(layer.weight).numel() == 0]
    return plain + sum(one.num_bytes for one in packed if isinstance(one, Packed))


def linears(model: Transformer) -> Iterator[Linear]:
    """Yield the layers whose weight is read by their product alone, but for a tied head."""
    for module in model.modules():
        parts: list[nn.Module | None] = []
        if isinstance(module, Attention):
            parts = [module.wq, module.wk, module.wv, module.wo]
        elif isinstance(module, FeedForward):
            parts = [module.w_gate, module.w_up, module.w_down]
        elif module is model:
            parts = [model.head]
        yield from (part for part in parts if isinstance(part, Linear))
