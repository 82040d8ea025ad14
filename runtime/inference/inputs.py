"""A batch as tensors: what the model and its attention read in one step, on this rank.

All tokens of a batch lie one after the other in one row, `[1, T]`, whatever they belong to: only
attention cares, and it reads which tokens are whose from here.

The block of a sequence holds `cp` times `block_size` tokens: the first `block_size` of them on the
first cp rank, and so on. What another rank holds is written to a block that nobody reads.

Layers with a sliding window see fewer tokens, so there is a `View` of the blocks for every window
of the model, None among them where layers see all.

Shapes: T tokens in this step, R sequences, M blocks of the longest, L tokens of M blocks on this
rank.
"""

import math
from collections.abc import Mapping, Sequence
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
    num_heads: int  # of keys and values on one rank
    cp_rank: int = 0
    cp_size: int = 1

    @property
    def tokens_per_block(self) -> int:
        return self.block_size * self.cp_size

    def own_length(self, length: int) -> int:
        """How many of a sequence's first `length` tokens are on this rank.

        >>> second = Paging(num_blocks=9, block_size=2, num_heads=1, cp_rank=1, cp_size=2)
        >>> [second.own_length(length) for length in range(6)]
        [0, 0, 0, 1, 2, 2]
        """
        whole, rest = divmod(length, self.tokens_per_block)
        mine = min(max(rest - self.cp_rank * self.block_size, 0), self.block_size)
        return whole * self.block_size + mine

    def positions(self, first_block: int, count: int) -> Array:
        """Return where this rank's first `count` tokens from a block on stand in their sequence."""
        index, place = np.divmod(np.arange(count, dtype=np.int64), self.block_size)
        first = self.cp_rank * self.block_size
        positions: Array = (first_block + index) * self.tokens_per_block + first + place
        return positions

    def slots(self, blocks: Sequence[int], positions: Array) -> Array:
        """Return where tokens at these positions go: block x block_size + place."""
        index, place = np.divmod(positions, self.tokens_per_block)
        return self.slots_of(np.asarray(blocks, np.int64)[index], place)

    def slots_of(self, block: Array, place: Array) -> Array:
        """Return where tokens at these places of these blocks go."""
        owner, place = np.divmod(place, self.block_size)
        block = np.where(owner == self.cp_rank, block, self.num_blocks)
        slots: Array = block * self.block_size + place
        return slots

    def rows_to_write(self, slots_T: Array) -> Array:
        """Return where every head's part of these tokens goes, `[T, K]`."""
        block, place = np.divmod(slots_T, self.block_size)
        heads = block[:, None] * self.num_heads + np.arange(self.num_heads)
        rows: Array = heads * self.block_size + place[:, None]
        return rows

    def rows_to_read(self, blocks_RM: Array) -> Array:
        """Return where every head's tokens of these blocks are, `[R, K, M]`."""
        rows: Array = blocks_RM[:, None] * self.num_heads + np.arange(self.num_heads)[:, None]
        return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Reads:
    """Sequences whose one query each reads its keys and values from the blocks."""

    tokens: slice  # of the step's
    rows_RKM: Tensor
    bias_RL: Tensor | None  # 0 for tokens that are seen, else minus infinity; None: all are seen
    blind: bool  # whether a sequence may have no token here


@dataclass(frozen=True, slots=True, kw_only=True)
class Fresh:
    """Successive tokens of one sequence, and what this rank holds of those before them."""

    tokens: slice
    rows_1KM: Tensor
    length: int  # tokens of them that are seen, from the first on
    visible_TL: Tensor | None  # which of these each token sees; None: all
    visible_TT: Tensor | None  # which of the tokens here each sees; None: all before it and itself


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What the step's tokens see of the blocks, in layers with one window."""

    reads: tuple[Reads, ...]
    fresh: tuple[Fresh, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInputs:
    """With `part` this rank computes only a part of the tokens: tokens and positions are its own,
    and `last_R` counts in them. All else is about the whole step.
    """

    tokens_T: Tensor
    positions_T: Tensor
    rows_TK: Tensor  # where their keys and values are written
    documents_T: Tensor  # which sequence each token belongs to; padding is one of its own
    views: Mapping[int | None, View]  # by window
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
    windows: Sequence[int | None] = (None,),
) -> StepInputs:
    """Lay out a batch. The number of tokens is rounded up to a `multiple`, at least one.

    `history_only`: single tokens too see in the blocks only what was before this step. `windows`
    are those of the layers.
    """
    num_tokens = max(-(-batch.num_tokens // multiple), 1) * multiple
    tokens = np.zeros(num_tokens, np.int64)
    positions = np.zeros(num_tokens, np.int64)
    slots = np.full(num_tokens, paging.num_blocks * paging.block_size, np.int64)
    documents = np.full(num_tokens, -1, np.int64)
    ends = []
    place = batch.num_decodes
    if place:
        singles = batch.chunks[:place]
        tokens[:place] = [chunk.tokens[0] for chunk in singles]
        positions[:place] = [chunk.start for chunk in singles]
        documents[:place] = np.arange(place)
        last = [chunk.blocks[chunk.start // paging.tokens_per_block] for chunk in singles]
        in_block = positions[:place] % paging.tokens_per_block
        slots[:place] = paging.slots_of(np.asarray(last, np.int64), in_block)
        ends = list(range(place))
    for number, chunk in enumerate(batch.chunks[place:], place):
        own = slice(place, place + len(chunk.tokens))
        tokens[own] = chunk.tokens
        positions[own] = np.arange(chunk.start, chunk.end)
        slots[own] = paging.slots(chunk.blocks, positions[own])
        documents[own] = number
        place = own.stop
        ends.append(place - 1)
    wanted = np.asarray([ends[chunk] for chunk in batch.chunk_of_row], np.int64)
    arrays = (tokens, positions, paging.rows_to_write(slots), documents, wanted)
    tensors = [torch.from_numpy(array).to(device, non_blocking=True) for array in arrays]
    return StepInputs(
        tokens_T=tensors[0],
        positions_T=tensors[1],
        rows_TK=tensors[2],
        documents_T=tensors[3],
        last_R=tensors[4],
        views={
            window: view(batch, paging, window, dtype, device, history_only=history_only)
            for window in windows
        },
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


def view(
    batch: Batch,
    paging: Paging,
    window: int | None,
    dtype: torch.dtype,
    device: torch.device,
    *,
    history_only: bool,
) -> View:
    """Find what each chunk of a batch reads of the blocks."""
    decodes, prompts = batch.chunks[: batch.num_decodes], batch.chunks[batch.num_decodes :]
    seen = [
        Seen.find(chunk, chunk.start if history_only else chunk.end, paging, window)
        for chunk in decodes
    ]
    reads = [
        read(decodes[first:last], seen[first:last], first, paging, dtype, device)
        for first, last in spans([one.end for one in seen])
    ]
    fresh, place = [], len(decodes)
    for chunk in prompts:
        fresh.append(look_back(chunk, place, paging, window, device))
        place += len(chunk.tokens)
    return View(reads=tuple(reads), fresh=tuple(fresh))


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Which of this rank's tokens of a sequence its next token sees, counted from `first_block`."""

    first_block: int
    begin: int
    end: int

    @classmethod
    def find(cls, chunk: Chunk, end: int, paging: Paging, window: int | None) -> "Seen":
        begin = 0 if window is None else max(chunk.start - window + 1, 0)
        first_block = begin // paging.tokens_per_block
        before = first_block * paging.block_size
        return cls(
            first_block=first_block,
            begin=paging.own_length(begin) - before,
            end=max(paging.own_length(end) - before, 0),
        )

    def blocks(self, chunk: Chunk, paging: Paging) -> tuple[int, ...]:
        count = -(-self.end // paging.block_size)
        return chunk.blocks[self.first_block : self.first_block + count]


def read(
    chunks: Sequence[Chunk],
    seen: Sequence[Seen],
    first: int,
    paging: Paging,
    dtype: torch.dtype,
    device: torch.device,
) -> Reads:
    """Put the blocks of several sequences side by side."""
    begins, ends = [one.begin for one in seen], [one.end for one in seen]
    num_blocks = max(-(-max(ends) // paging.block_size), 1)
    blocks = np.full((len(chunks), num_blocks), paging.num_blocks, np.int64)
    for row, (chunk, one) in enumerate(zip(chunks, seen, strict=True)):
        held = one.blocks(chunk, paging)
        blocks[row, : len(held)] = held
    width = num_blocks * paging.block_size
    bias = None
    if max(begins) > 0 or min(ends) < width:
        places = np.arange(width)
        sees = (places >= np.asarray(begins)[:, None]) & (places < np.asarray(ends)[:, None])
        bias = torch.from_numpy(np.where(sees, 0.0, -math.inf)).to(device, dtype)
    return Reads(
        tokens=slice(first, first + len(chunks)),
        rows_RKM=torch.from_numpy(paging.rows_to_read(blocks)).to(device),
        bias_RL=bias,
        blind=any(begin >= end for begin, end in zip(begins, ends, strict=True)),
    )


def look_back(
    chunk: Chunk, place: int, paging: Paging, window: int | None, device: torch.device
) -> Fresh:
    """Find what the tokens of a chunk, which begins at `place` in the step, see."""
    seen = Seen.find(chunk, chunk.start, paging, window)
    num_tokens = len(chunk.tokens)
    before = among = None
    if window is not None:
        queries = np.arange(chunk.start, chunk.end)[:, None]
        keys = paging.positions(seen.first_block, seen.end)
        before = torch.from_numpy(keys > queries - window).to(device)
        if num_tokens > window:
            among = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=device)
            among = among.tril().triu(1 - window)
    blocks = np.asarray([seen.blocks(chunk, paging)], np.int64)
    return Fresh(
        tokens=slice(place, place + num_tokens),
        rows_1KM=torch.from_numpy(paging.rows_to_read(blocks)).to(device),
        length=seen.end,
        visible_TL=before,
        visible_TT=among,
    )
