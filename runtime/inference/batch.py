"""One step's work, as the scheduler decides it: plain data, the same on every rank."""

from collections.abc import Sequence
from dataclasses import dataclass

from parctl.runtime.inference.block_manager import Operation
from parctl.runtime.inference.request import SampleRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Successive tokens of one sequence: a part of its prompt, or the one token to go on from."""

    tokens: tuple[int, ...]
    start: int  # position of the first
    blocks: tuple[int, ...]  # of the sequence, up to the end of this chunk at least

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Chunks of one token come first, shortest context first; then the others.

    `rows[i]` is to be sampled from the logits behind the last token of chunk `chunk_of_row[i]`. A
    prompt with n samples has n rows.
    """

    operations: Sequence[Operation]
    chunks: Sequence[Chunk]
    rows: Sequence[SampleRow]
    chunk_of_row: Sequence[int]

    @property
    def num_decodes(self) -> int:
        """How many chunks are one token long."""
        return sum(len(chunk.tokens) == 1 for chunk in self.chunks)

    @property
    def num_tokens(self) -> int:
        return sum(len(chunk.tokens) for chunk in self.chunks)
