"""First weights from a Hugging Face folder: each rank reads only its own part of every tensor.

Files are mapped into memory, so taking a slice of a tensor reads the pages of that slice. Values
are cast to the dtype that we train in. Those in float8 are multiplied by the scale of their block.
"""

import mmap
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from parctl.recipes.spec import ModelSpec
from parctl.runtime.huggingface.check import find_key, refuse_bad_weights
from parctl.runtime.huggingface.files import FLOAT8, SCALES, Stored, block_size, list_tensors
from parctl.runtime.huggingface.names import Weight, weights
from parctl.runtime.model.initialize import own_part

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    FLOAT8: torch.float8_e4m3fn,
}
Offset = tuple[int, ...]


class Folder:
    """The tensors of a folder, mapped."""

    def __init__(self, folder: Path) -> None:
        self._stored = list_tensors(folder)
        self._maps: dict[Path, mmap.mmap] = {}
        self.block = block_size(folder)

    def tensor(self, key: str) -> Tensor:
        """Return the whole tensor, of which only what is looked at is read."""
        stored = self._stored[find_key(self._stored, key)]
        num_elements = torch.Size(stored.shape).numel()
        if num_elements == 0:
            return torch.empty(stored.shape, dtype=DTYPES[stored.dtype])
        return torch.frombuffer(
            self._map(stored), dtype=DTYPES[stored.dtype], count=num_elements, offset=stored.begin
        ).view(stored.shape)

    def scales(self, key: str) -> Tensor | None:
        """Return the scale of every block of a tensor in float8."""
        key = find_key(self._stored, key)
        return self.tensor(key + SCALES) if self._stored[key].dtype == FLOAT8 else None

    def _map(self, stored: Stored) -> mmap.mmap:
        if stored.path not in self._maps:
            with stored.path.open("rb") as file:
                # private to us: torch wants memory that it may write
                self._maps[stored.path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return self._maps[stored.path]


def load(folder: Path, model: ModelSpec, state: Mapping[str, Tensor]) -> None:
    """Fill `state`, this rank's tensors by our names, in place."""
    refuse_bad_weights(folder, model)
    files = Folder(folder)
    by_name = {weight.name: weight for weight in weights(model)}
    with torch.no_grad():
        for name, tensor in state.items():
            own, offset = own_part(tensor)
            fill(own, offset, by_name[name], files)


def fill(own: Tensor, offset: Offset, weight: Weight, files: Folder) -> None:
    """Fill `own`, the part of a tensor that begins at `offset`."""
    if own.numel() == 0:
        return
    if own.dim() == 3:  # stacked experts
        for place, matrix in enumerate(own.unbind()):
            read_part(matrix, offset[1:], weight, weight.keys[offset[0] + place], files)
    else:
        read_part(own, offset, weight, weight.keys[0], files)


def read_part(own: Tensor, offset: Offset, weight: Weight, key: str, files: Folder) -> None:
    """Fill `own` from one stored tensor."""
    part = cut(files.tensor(key), own, offset, weight)
    scales = files.scales(key)
    if scales is None:
        own.copy_(part)
        return
    # each number's own scale, found as the number is: by its row and column in the file
    rows, columns = (
        torch.arange(size).div(step, rounding_mode="floor")
        for size, step in zip(weight.shape_there, files.block, strict=True)
    )
    rows_X1 = cut(rows.unsqueeze(1), own[:, :1], (offset[0], 0), weight)
    own.copy_(part.float() * scales[rows_X1, columns[offset[1] : offset[1] + own.shape[1]]])


def cut(there: Tensor, own: Tensor, offset: Offset, weight: Weight) -> Tensor:
    """Return the part of one stored tensor that belongs into `own`."""
    if weight.transposed and there.dim() == 2:
        there = there.T
    if weight.part is not None:
        index, count = weight.part
        there = there.chunk(count)[index]
    first, num_rows = offset[0], own.shape[0]
    if weight.pairs is not None:
        rows = [weight.pairs.row_there(row) for row in range(first, first + num_rows)]
        there = there[rows]
    else:
        there = there.narrow(0, first, num_rows)
    for dim in range(1, own.dim()):
        there = there.narrow(dim, offset[dim], own.shape[dim])
    return there
