"""Dropout whose masks are right under tensor parallelism.

The ranks of one TP group keep equal default generators (the trainer seeds them so). Where all of
them hold the same activation they must drop the same elements; where each holds its own part (heads
in attention, tokens under SP) they must not. `own_stream` gives a rank its own draws for the second
case and leaves the shared generator in step. All of it follows from the default generator's state,
which recomputation restores.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@contextmanager
def own_stream(tp_rank: int, device: torch.device) -> Iterator[None]:
    """Draw from a stream of this TP rank inside, and from the shared one again after."""
    seed = skip_stream() + tp_rank
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def skip_stream() -> int:
    """Take one number from the shared generator, as `own_stream` does on ranks that draw."""
    return int(torch.randint(2**62, ()).item())


class Dropout(nn.Module):
    """Zero a share `p` of the elements and scale up the rest; does nothing in evaluation."""

    tp_rank: int | None = None  # set when every TP rank holds its own part of the input

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if self.tp_rank is None:
            return F.dropout(x, self.p)
        with own_stream(self.tp_rank, x.device):
            return F.dropout(x, self.p)
