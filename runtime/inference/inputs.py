"""A batch as tensors: what the model and its attention read in one step, on this rank.

All tokens of a batch lie one after the other in one row, `[1, T]`, whatever they belong to: only
attention cares, and it reads which tokens are whose from here.

The block of a sequence holds `cp` times `block_size` tokens: the first `block_size` of them on the
first cp rank, and so on. What another rank holds is written to a block that nobody reads.

Shapes: T tokens in this step, R sequences, M blocks of the longest, L tokens of M blocks on this
rank.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from parctl.runtime.inference.batch import Batch, Chunk
from parctl.runtime.model.sequence import SequencePart

Array = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Paging:
    """How the tokens of a sequence are dealt out."""

    num_blocks: int
    block_size: int  # tokens of a block on one rank
    cp_rank: int = 0
    cp_size: int = 1

    @property
    def tokens_per_block(self) -> int:
        return self.block_size * self.cp_size

    def own_length(self, length: int) -> int:
        """How many of a sequence's first `length` tokens are on this rank.

        >>> second = Paging(num_blocks=9, block_size=2, cp_rank=1, cp_size=2)
        >>> [second.own_length(length) for length in range(6)]
        [0, 0, 0, 1, 2, 2]
        """
        whole, rest = divmod(length, self.tokens_per_block)
        mine = min(max(rest - self.cp_rank * self.block_size, 0), self.block_size)
        return whole * self.block_size + mine

    def slots(self, blocks: Sequence[int], positions: Array) -> Array:
        """Return where tokens at these positions go: block x block_size + place."""
        index, place = np.divmod(positions, self.tokens_per_block)
        owner, place = np.divmod(place, self.block_size)
        block = np.asarray(blocks, np.int64)[index]
        block = np.where(owner == self.cp_rank, block, self.num_blocks)
        slots: Array = block * self.block_size + place
        return slots


@dataclass(frozen=True, slots=True, kw_only=True)
class Reads:
    """Sequences whose one query each reads its keys and values from the blocks."""

    tokens: slice  # of the step's
    blocks_RM: Tensor
    bias_RL: Tensor | None  # 0 for tokens that are seen, else minus infinity; None: all are seen
    blind: bool  # whether a sequence may have no token here


@dataclass(frozen=True, slots=True, kw_only=True)
class Fresh:
    """Successive tokens of one sequence, and what this rank holds of those before them."""

    tokens: slice
    blocks_M: Tensor
    length: int  # tokens of them that are seen


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInputs:
    """With `part` this rank computes only a part of the tokens: tokens and positions are its own,
    and `last_R` counts in them. All else is about the whole step.
    """

    tokens_T: Tensor
    positions_T: Tensor
    slots_T: Tensor
    documents_T: Tensor  # which sequence each token belongs to; padding is one of its own
    reads: tuple[Reads, ...]
    fresh: tuple[Fresh, ...]
    last_R: Tensor  # whose logits are wanted, by row to be sampled
    part: SequencePart | None = None
    held_R: Tensor | None = None  # whether this rank has that token; None: all


def make_inputs(
    batch: Batch,
    paging: Paging,
    *,
    multiple: int,
    dtype: torch.dtype,
    device: torch.device,
    history_only: bool = False,
) -> StepInputs:
    """Lay out a batch. The number of tokens is rounded up to a `multiple`, at least one.

    `history_only`: single tokens too see in the blocks only what was before this step.
    """
    num_tokens = max(-(-batch.num_tokens // multiple), 1) * multiple
    tokens = np.zeros(num_tokens, np.int64)
    positions = np.zeros(num_tokens, np.int64)
    slots = np.full(num_tokens, paging.num_blocks * paging.block_size, np.int64)
    documents = np.full(num_tokens, -1, np.int64)
    ends = []
    place = 0
    for number, chunk in enumerate(batch.chunks):
        own = slice(place, place + len(chunk.tokens))
        tokens[own] = chunk.tokens
        positions[own] = np.arange(chunk.start, chunk.end)
        slots[own] = paging.slots(chunk.blocks, positions[own])
        documents[own] = number
        place = own.stop
        ends.append(place - 1)
    lengths = [
        paging.own_length(chunk.start if history_only else chunk.end) for chunk in batch.chunks
    ]
    reads, fresh = [], []
    for first, last in spans(lengths[: batch.num_decodes]):
        reads.append(
            read(batch.chunks[first:last], lengths[first:last], first, paging, dtype, device)
        )
    place = batch.num_decodes
    for chunk in batch.chunks[batch.num_decodes :]:
        length = paging.own_length(chunk.start)
        held = chunk.blocks[: -(-length // paging.block_size)]
        fresh.append(
            Fresh(
                tokens=slice(place, place + len(chunk.tokens)),
                blocks_M=torch.tensor(held, dtype=torch.int64, device=device),
                length=length,
            )
        )
        place += len(chunk.tokens)
    wanted = np.asarray([ends[chunk] for chunk in batch.chunk_of_row], np.int64)
    arrays = (tokens, positions, slots, documents, wanted)
    tensors = [torch.from_numpy(array).to(device, non_blocking=True) for array in arrays]
    return StepInputs(
        tokens_T=tensors[0],
        positions_T=tensors[1],
        slots_T=tensors[2],
        documents_T=tensors[3],
        last_R=tensors[4],
        reads=tuple(reads),
        fresh=tuple(fresh),
    )


def own_part(inputs: StepInputs, part: SequencePart) -> StepInputs:
    """Leave this rank the tokens that context parallelism gives it."""
    num_tokens = len(inputs.tokens_T) // part.count
    places_T = part.positions(num_tokens, inputs.tokens_T.device)
    found_R = torch.searchsorted(places_T, inputs.last_R).clamp(max=num_tokens - 1)
    return replace(
        inputs,
        tokens_T=inputs.tokens_T[places_T],
        positions_T=inputs.positions_T[places_T],
        last_R=found_R,
        part=part,
        held_R=places_T[found_R] == inputs.last_R,
    )


def spans(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Cut sequences, shortest first, into groups whose longest is at most twice their shortest.

    So that padding all of a group to its longest is cheap.

    >>> spans([3, 4, 30, 40, 50])
    [(0, 2), (2, 5)]
    """
    cuts, first = [], 0
    for index, length in enumerate(lengths):
        if length > 2 * max(lengths[first], 32):
            cuts.append((first, index))
            first = index
    return [*cuts, (first, len(lengths))] if lengths else []


def read(
    chunks: Sequence[Chunk],
    lengths: Sequence[int],
    first: int,
    paging: Paging,
    dtype: torch.dtype,
    device: torch.device,
) -> Reads:
    """Put the blocks of several sequences side by side."""
    num_blocks = max(-(-max(lengths) // paging.block_size), 1)
    blocks = np.full((len(chunks), num_blocks), paging.num_blocks, np.int64)
    for row, (chunk, length) in enumerate(zip(chunks, lengths, strict=True)):
        held = chunk.blocks[: -(-length // paging.block_size)]
        blocks[row, : len(held)] = held
    width = num_blocks * paging.block_size
    bias = None
    if min(lengths) < width:
        seen = np.arange(width) < np.asarray(lengths)[:, None]
        bias = torch.from_numpy(np.where(seen, 0.0, -math.inf)).to(device, dtype)
    return Reads(
        tokens=slice(first, first + len(chunks)),
        blocks_RM=torch.from_numpy(blocks).to(device),
        bias_RL=bias,
        blind=min(lengths) == 0,
    )
