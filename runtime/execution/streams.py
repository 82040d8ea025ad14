"""Branches of a block side by side on one device: kernels of one fill what the other leaves idle.

    stream 0   wait ........ branch 0 ... wait for 1   sum
    stream 1   wait for 0    branch 1 ...

Autograd runs every backward kernel on the stream of its forward one, so the backward pass overlaps
alike. Exchanges of one branch (tp) then overlap with the arithmetic of the other. On CPUs the same
arithmetic is done in order.
"""

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor


@cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """The second stream of a device, the same for every block."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def side_by_side(
    branches: Sequence[Callable[[Tensor], Tensor]], x: Tensor, *, num_streams: int
) -> list[Tensor]:
    """Apply every branch to `x`: all but the first on the second stream where there are two."""
    if num_streams == 1 or len(branches) == 1 or x.device.type != "cuda":
        return [branch(x) for branch in branches]
    side, current = side_stream(x.device), torch.cuda.current_stream(x.device)
    side.wait_stream(current)
    with torch.cuda.stream(side):
        others = [branch(x) for branch in branches[1:]]
    results = [branches[0](x), *others]
    current.wait_stream(side)
    # each stream's memory is not to be given away while the other still reads it
    x.record_stream(side)
    for other in others:
        other.record_stream(current)
    return results
