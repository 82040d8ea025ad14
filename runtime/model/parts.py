"""Rows that are widened to float32 together: never all of them, so that no wide copy is whole."""

from collections.abc import Iterator

from torch import Tensor

CACHED_ELEMENTS = 1 << 17  # on a CPU: what its cache holds, several times
LAUNCHED_ELEMENTS = 1 << 24  # on a GPU: what makes the start of a kernel cheap


def parts(x: Tensor, dim: int = 0) -> Iterator[slice]:
    """Slices of `dim` that cover it."""
    elements = CACHED_ELEMENTS if x.device.type == "cpu" else LAUNCHED_ELEMENTS
    length = x.shape[dim]
    step = max(1, elements * length // max(1, x.numel()))
    for begin in range(0, length, step):
        yield slice(begin, begin + step)
