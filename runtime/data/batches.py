"""Batches: packed sequences cut from a token stream, in an order that no layout changes.

Sequence i is tokens `[i*S, i*S + S]`, one more than S because targets are the next tokens;
documents run on into each other. Training takes sequences in a new shuffled order every epoch. The
position in that order (`cursor`: sequences used so far) is all that a checkpoint has to remember,
and means the same on every layout: each data rank takes its rows of the global batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import PCG64, Generator
from numpy.typing import NDArray
from torch import Tensor

from parctl.errors import UsageError
from parctl.recipes.spec import TrainSpec
from parctl.runtime.data.tokens import TokenStream
from parctl.runtime.model.loss import IGNORED
from parctl.runtime.model.sequence import WHOLE, SequencePart
from parctl.runtime.parallel.mesh import RankMesh

ROUNDS = 4  # a Feistel network of four rounds passes for a random permutation


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """S is the part of a sequence that this cp rank holds, T the whole of it."""

    tokens: Tensor  # [B, S], or images [B, C, I, I]
    targets: Tensor  # [B, S], or classes [B]; IGNORED where nothing is to be predicted
    documents: Tensor | None = None  # [B, T], equal where tokens may see each other
    following: Tensor | None = None  # [B, S, 1 + K]: targets, and K more after them (MTP)
    source: Tensor | None = None  # [B, S], what an encoder reads

    def context(self) -> dict[str, Tensor]:
        """Return what every pipeline stage takes beside the stream, by keyword."""
        found = {"documents": self.documents, "following": self.following, "source": self.source}
        return {name: tensor for name, tensor in found.items() if tensor is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How sequences become micro-batches."""

    part: SequencePart = WHOLE  # of cp
    end_token: int | None = None  # after which a document ends; None: documents are not kept apart
    num_following: int = 0  # tokens after the target that are to be predicted too


PLAIN = Reading()


class Batches(ABC):
    """This rank's rows of every global batch: sequences of text, or images."""

    def __init__(self, num_sequences: int, train: TrainSpec, mesh: RankMesh) -> None:
        self.num_sequences, self._train, self._mesh = num_sequences, train, mesh
        self._rows = train.global_batch // mesh.data_size

    @abstractmethod
    def _row(self, sequence: int) -> NDArray[np.int64]:
        """Read one row. Past the last one, a row that does not count."""

    @abstractmethod
    def _micro_batch(self, rows_BX: Tensor) -> MicroBatch: ...

    def training(self, cursor: int) -> Iterator[MicroBatch]:
        """Yield this rank's micro-batches of the global batch that begins at `cursor`."""
        positions = self._own_positions(cursor)
        epochs, places = np.divmod(positions, self.num_sequences)
        sequences = np.empty_like(places)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            key = self._train.seed * 1_000_003 + int(epoch)
            sequences[chosen] = shuffled(places[chosen], self.num_sequences, key)
        return self._micro_batches(sequences)

    def validation(self, index: int) -> Iterator[MicroBatch]:
        """Yield this rank's part of the `index`th global batch, in the order of the stream."""
        return self._micro_batches(self._own_positions(index * self._train.global_batch))

    def validation_rows(self, index: int) -> int:
        """Count the rows of that global batch: the last one may be short."""
        left = self.num_sequences - index * self._train.global_batch
        return min(max(left, 0), self._train.global_batch)

    def _own_positions(self, first: int) -> NDArray[np.int64]:
        """The micro-batches of all ranks together are slices of the global batch, in order.

        So one process can take the same ones, which balance losses of experts depend on.
        """
        size = self._train.micro_batch
        begin = first + self._mesh.data_rank * size
        starts = begin + np.arange(0, self._rows, size) * self._mesh.data_size
        return (starts[:, None] + np.arange(size)).reshape(-1).astype(np.int64)

    def _micro_batches(self, sequences: NDArray[np.int64]) -> Iterator[MicroBatch]:
        for start in range(0, len(sequences), self._train.micro_batch):
            rows = torch.from_numpy(
                np.stack([self._row(i) for i in sequences[start : start + self._train.micro_batch]])
            )
            if self._mesh.device.type == "cuda":
                # out of pinned memory the copy runs beside the step before, and nobody waits
                rows = rows.pin_memory().to(self._mesh.device, non_blocking=True)
            yield self._micro_batch(rows)


class TextBatches(Batches):
    def __init__(
        self,
        stream: TokenStream,
        train: TrainSpec,
        mesh: RankMesh,
        *,
        what: str,
        reading: Reading = PLAIN,
    ) -> None:
        self._extra = 1 + reading.num_following
        super().__init__((len(stream) - self._extra) // train.seq_len, train, mesh)
        if self.num_sequences < 1:
            raise UsageError(
                f"data.{what} holds {len(stream)} tokens, "
                f"but one sequence takes train.seq_len + {self._extra} "
                f"= {train.seq_len + self._extra}",
                hint="add text, or lower train.seq_len"
                + (", or set train.validate_every to 0" if what == "validation" else ""),
            )
        self._stream, self._reading = stream, reading

    def _micro_batch(self, rows_BX: Tensor) -> MicroBatch:
        """Make this cp rank's micro-batch of whole sequences and the tokens after them."""
        reading, seq_len = self._reading, self._train.seq_len
        own_S = reading.part.positions(seq_len // reading.part.count, rows_BX.device)
        documents = following = None
        if reading.end_token is not None:
            ends_BT = rows_BX[:, :seq_len] == reading.end_token
            documents = ends_BT.cumsum(dim=1) - ends_BT.long()  # an end mark ends its own document
        if reading.num_following:
            following = rows_BX.unfold(1, self._extra, 1)[:, own_S + 1]
        return MicroBatch(
            tokens=rows_BX[:, own_S].clamp(min=0),
            targets=rows_BX[:, own_S + 1],
            documents=documents,
            following=following,
        )

    def _row(self, sequence: int) -> NDArray[np.int64]:
        seq_len = self._train.seq_len
        if sequence >= self.num_sequences:
            return np.full(seq_len + self._extra, IGNORED, dtype=np.int64)
        return self._stream.read(int(sequence) * seq_len, seq_len + self._extra)


def shuffled(places: NDArray[np.int64], length: int, key: int) -> NDArray[np.int64]:
    """Map places of a shuffled order to 0 ... length-1, without holding the order in memory.

    A Feistel network permutes the smallest square power of two above `length`; results outside are
    sent through again until they fall inside, which keeps it a permutation.
    """
    half = max(1, ((length - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    keys = Generator(PCG64(key)).integers(1 << 63, size=ROUNDS, dtype=np.uint64)
    result = places.astype(np.uint64)
    outside = np.ones(len(result), dtype=bool)
    while outside.any():
        left, right = result[outside] >> np.uint64(half), result[outside] & mask
        for round_key in keys:
            left, right = right, left ^ (mix(right + round_key) & mask)
        result[outside] = (left << np.uint64(half)) | right
        outside = result >= length
    return result.astype(np.int64)


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64 bits (the finisher of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
