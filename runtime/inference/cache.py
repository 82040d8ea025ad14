"""The memory that blocks are pages of: keys and values of one rank's layers.

A block lies in memory head by head, `[blocks, K, block_size, H]`, so that the gathered blocks of a
sequence are its keys `[K, L, H]` without another copy. Latent attention caches one row per token,
which serves all heads as key and, but for its rotated end, as value: then `values` is `keys`.

The last block is nobody's: padding, and what other cp ranks hold, is written there.

A row is one head's tokens of a block when it is read, and one head's one token when it is written.
Which rows a step touches is the same for all layers, so it is found once (`inputs`).

Shapes: K key/value heads of this rank, H their width, T tokens, R sequences, M blocks, L tokens of
M blocks.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor

from parctl.runtime.inference.block_manager import Operation


class LayerCache:
    """Keys and values of one layer. `shared`: values are in the same memory as keys."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        num_heads: int,
        head_dim: int,
        *,
        shared: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (num_blocks, num_heads, block_size, head_dim)
        self.block_size, self.num_heads = block_size, num_heads
        # zeros, not whatever was there: what is masked is multiplied by 0, and 0 x NaN is NaN
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = self.keys if shared else torch.zeros_like(self.keys)

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return (self.keys,) if self.values is self.keys else (self.keys, self.values)

    def write(self, rows_TK: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> None:
        rows = rows_TK.flatten()
        for part, new_TKH in zip(self.parts, (k_TKH, v_TKH), strict=False):
            width = part.shape[-1]
            part.view(-1, width).index_copy_(0, rows, new_TKH.reshape(-1, width))

    def read(self, rows_RKM: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values `[R, K, L, H]` of several sequences."""
        num_sequences, num_heads, num_blocks = rows_RKM.shape

        def gather(part: Tensor) -> Tensor:
            rows = part.view(-1, *part.shape[2:]).index_select(0, rows_RKM.flatten())
            return rows.view(num_sequences, num_heads, num_blocks * self.block_size, part.shape[-1])

        keys = gather(self.keys)
        return keys, keys if self.values is self.keys else gather(self.values)


class Cache:
    """All layers of this rank, on the device and, for swapping, on the host."""

    def __init__(self, layers: Sequence[LayerCache], num_host_blocks: int) -> None:
        self.layers = tuple(layers)
        self._host = [
            torch.empty((num_host_blocks, *part.shape[1:]), dtype=part.dtype)
            for part in self._parts()
            if num_host_blocks
        ]

    @property
    def num_bytes(self) -> int:
        """On the device."""
        return sum(part.nbytes for part in self._parts())

    def do(self, operations: Sequence[Operation]) -> None:
        """Copy blocks, in the given order."""
        for kind, group in groupby(operations, key=lambda operation: operation.kind):
            run = list(group)
            sources = torch.tensor([operation.source for operation in run])
            targets = torch.tensor([operation.target for operation in run])
            for index, part in enumerate(self._parts()):
                source = self._host[index] if kind == "in" else part
                target = self._host[index] if kind == "out" else part
                rows = source[sources.to(source.device)]
                target[targets.to(target.device)] = rows.to(target.device)

    def _parts(self) -> Iterator[Tensor]:
        for layer in self.layers:
            yield from layer.parts
