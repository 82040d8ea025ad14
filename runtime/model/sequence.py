"""Which tokens of a sequence a rank of context parallelism holds.

Contiguous: rank r holds the r-th of `count` parts. Zigzag: the sequence is cut into 2 x count
chunks, and rank r holds chunks r and 2 count - 1 - r, as for two ranks::

    rank   0 1 1 0        tokens   0 1 | 2 3 | 4 5 | 6 7

A later token attends to more keys than an earlier one. With one chunk from each end all ranks have
equal work in every round of a ring.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class TokenPlaces(Protocol):
    """Knows where the tokens of a pass stand in their sequences."""

    def positions(self, num_tokens: int, device: torch.device) -> Tensor:
        """Return the position `[S]` of each of the `num_tokens` tokens held here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SequencePart:
    index: int  # rank in the cp group
    count: int  # size of the cp group
    zigzag: bool

    def positions(self, num_tokens: int, device: torch.device) -> Tensor:
        """Return where the `num_tokens` tokens held here stand in the whole sequence, ascending.

        >>> SequencePart(index=0, count=2, zigzag=True).positions(4, torch.device("cpu"))
        tensor([0, 1, 6, 7])
        """
        if not self.zigzag:
            first = self.index * num_tokens
            return torch.arange(first, first + num_tokens, device=device)
        half = num_tokens // 2
        late = (2 * self.count - 1 - self.index) * half
        early = torch.arange(self.index * half, (self.index + 1) * half, device=device)
        return torch.cat((early, torch.arange(late, late + half, device=device)))


WHOLE = SequencePart(index=0, count=1, zigzag=False)
