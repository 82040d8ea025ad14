"""First weights, equal for every layout.

Each parameter is drawn in blocks of rows, and each block from a generator seeded by (seed, name,
block). So a rank draws only the blocks that its part touches, needs neither the whole model nor a
broadcast, and finds the same numbers whatever the layout is.
"""

import hashlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

ROWS_PER_BLOCK = 64  # small enough that a shard draws little more than it keeps
STD = 0.02  # GPT-2 and Llama alike
INTO_STREAM = (
    "attention.wo.weight",
    "feed_forward.w_down.weight",
    "shared.w_down.weight",
    "experts.w_down",
)


def fill(parameters: Mapping[str, nn.Parameter], *, num_layers: int, seed: int) -> None:
    """Fill every parameter in place: norms 1, biases 0, matrices normal.

    What is added into the stream is scaled by 1/sqrt(2 layers), as in GPT-2, so that the stream's
    size does not grow with depth.
    """
    with torch.no_grad():
        for name, parameter in parameters.items():
            own, offset = own_part(parameter)
            if name.endswith("norm.weight"):
                own.fill_(1)
            elif name.endswith("bias"):
                own.zero_()
            elif own.numel() > 0:
                std = STD / (2 * num_layers) ** 0.5 if name.endswith(INTO_STREAM) else STD
                for matrix, key in own_matrices(own, offset, f"{seed}:{name}"):
                    fill_normal(
                        matrix,
                        offset[-2:],
                        num_columns=parameter.shape[-1],
                        std=std,
                        key=key,
                        num_rows=parameter.shape[-2],
                    )


def own_matrices(own: Tensor, offset: tuple[int, ...], key: str) -> Iterator[tuple[Tensor, str]]:
    """A matrix and the key of its numbers; of stacked experts, one for each."""
    if own.dim() == 2:
        yield own, key
        return
    for place, matrix in enumerate(own.unbind()):
        yield matrix, f"{key}:{offset[0] + place}"


def own_part(parameter: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Return this rank's part and where it begins in the whole."""
    if not isinstance(parameter, DTensor):
        return parameter, (0,) * parameter.dim()
    shape, offset = compute_local_shape_and_global_offset(
        parameter.shape, parameter.device_mesh, parameter.placements
    )
    own = parameter.to_local()
    assert own.shape == torch.Size(shape), (own.shape, shape)
    return own, tuple(offset)


def fill_normal(
    own: Tensor,
    offset: tuple[int, ...],
    *,
    num_rows: int,
    num_columns: int,
    std: float,
    key: str,
) -> None:
    """Fill `own`, the part of a `num_rows` x `num_columns` matrix that begins at `offset`."""
    first, column = offset
    last = first + own.shape[0]
    for start in range(first - first % ROWS_PER_BLOCK, last, ROWS_PER_BLOCK):
        block = normal_block(key, start, min(ROWS_PER_BLOCK, num_rows - start), num_columns)
        low, high = max(first, start), min(last, start + ROWS_PER_BLOCK)
        rows = block[low - start : high - start, column : column + own.shape[1]]
        own[low - first : high - first].copy_(rows * std)


def normal_block(key: str, start: int, num_rows: int, num_columns: int) -> Tensor:
    """Draw a block, always on the CPU and in float32: generators differ between devices."""
    digest = hashlib.sha256(f"{key}:{start}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.randn(num_rows, num_columns, generator=generator)
