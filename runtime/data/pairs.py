"""Pairs for an encoder and its decoder: a stretch of text, and how it goes on.

The encoder reads `seq_len` tokens, the decoder writes the `seq_len` after them (the prefix language
model of T5, 1910.10683, section 3.2.1, cut in the middle). So any text is training data, every pair
is as long as every other, and a step of `global_batch` pairs predicts as many tokens as a step of
any other model. As in T5, the decoder begins with token 0::

    stream    a b c d | e f g h
    source    a b c d     tokens  0 e f g     targets  e f g h
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parctl.errors import UsageError
from parctl.recipes.spec import TrainSpec
from parctl.runtime.data.batches import Batches, MicroBatch
from parctl.runtime.data.tokens import TokenStream
from parctl.runtime.model.loss import IGNORED
from parctl.runtime.parallel.mesh import RankMesh

START = 0  # the decoder's first token


class PairBatches(Batches):
    """This rank's pairs of every global batch. What counts as a sequence is a pair."""

    def __init__(self, stream: TokenStream, train: TrainSpec, mesh: RankMesh, *, what: str) -> None:
        self._pair = 2 * train.seq_len
        super().__init__(len(stream) // self._pair, train, mesh)
        if self.num_sequences < 1:
            raise UsageError(
                f"data.{what} holds {len(stream)} tokens, "
                f"but a pair for encoder and decoder takes 2 x train.seq_len = {self._pair}",
                hint="add text, or lower train.seq_len"
                + (", or set train.validate_every to 0" if what == "validation" else ""),
            )
        self._stream = stream

    def _row(self, sequence: int) -> NDArray[np.int64]:
        if sequence >= self.num_sequences:
            return np.full(self._pair, IGNORED, dtype=np.int64)
        return self._stream.read(int(sequence) * self._pair, self._pair)

    def _micro_batch(self, rows_BX: Tensor) -> MicroBatch:
        source_BS, targets_BS = rows_BX.chunk(2, dim=1)
        start_B1 = torch.full_like(targets_BS[:, :1], START)
        return MicroBatch(
            tokens=torch.cat((start_B1, targets_BS[:, :-1]), dim=1).clamp(min=0),
            targets=targets_BS.contiguous(),
            source=source_BS.clamp(min=0),
        )
