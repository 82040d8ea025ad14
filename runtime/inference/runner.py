"""One rank's part of every step: its stage on the batch that has come this far.

A pipeline works on as many batches as it has stages. In step t, stage s computes batch t - s, whose
stream stage s - 1 made in step t - 1; the last stage samples::

    step      0    1    2    3
    stage 0   b0   b1   b2   b3
    stage 1        b0   b1   b2      tokens of b0 are known after step 1

Every stage does the batches in the same order, and a batch's block copies before its tokens. So a
block may be given to another sequence while a later stage has yet to read what it held.
"""

from collections import deque

import torch
import torch.distributed as dist
from torch import Tensor

from parctl.runtime.inference.batch import Batch
from parctl.runtime.inference.inputs import StepInputs, make_inputs, own_part
from parctl.runtime.inference.place import Place
from parctl.runtime.inference.request import Sampled, Sampler
from parctl.runtime.inference.stage import Stage, whole_logits

NOTHING = Batch(operations=(), chunks=(), rows=(), chunk_of_row=())


class Runner:
    def __init__(self, stage: Stage, place: Place, sampler: Sampler) -> None:
        self._stage, self._place, self._sampler = stage, place, sampler
        self._batches: deque[Batch] = deque(maxlen=place.num_stages)  # the newest last
        self._sent: tuple[Tensor, dist.Work | None] | None = None

    def take(self, batch: Batch) -> bool:
        """Take a new batch in. Returns whether the one that is here now has work in it."""
        self._batches.append(batch)
        return bool(self._here.chunks)

    def step(self, *, join_in: bool) -> list[Sampled]:
        """Compute the batch that is here now; `join_in` with padding if it has no work.

        Returns on the sampling rank the tokens of the batch that is through, in others none.
        """
        with torch.inference_mode():
            self._stage.cache.do(self._here.operations)
            if self._here.chunks:
                return self._compute(self._here)
            if join_in:
                self._pad()
            return []

    @property
    def _here(self) -> Batch:
        number = self._place.stage
        return self._batches[-1 - number] if len(self._batches) > number else NOTHING

    @property
    def through(self) -> Batch | None:
        """The batch that leaves the pipeline in this step."""
        full = len(self._batches) == self._place.num_stages
        return self._batches[0] if full else None

    def _compute(self, batch: Batch) -> list[Sampled]:
        place, model = self._place, self._stage.model
        self._stage.step.inputs = inputs = self._lay_out(batch)
        if model.part.first:
            x = inputs.tokens_T.unsqueeze(0)
        else:
            x = self._receive(len(inputs.tokens_T) // model.stream_shards)
        out: Tensor = model(x)
        if not model.part.last:
            self._send(out)
            return []
        if not batch.rows:
            return []
        logits_RV = whole_logits(out[0], model.num_logits, place.tp)
        return self._sampler(logits_RV, batch.rows) if place.is_sampler else []

    def _pad(self) -> None:
        """Run the stage on tokens of nobody, whose experts the other replicas wait for."""
        model = self._stage.model
        self._stage.step.inputs = inputs = self._lay_out(NOTHING)
        x = inputs.tokens_T.unsqueeze(0)
        if not model.part.first:
            num_tokens = x.shape[1] // model.stream_shards
            x = self._empty(num_tokens).zero_()
        model(x)

    def _lay_out(self, batch: Batch) -> StepInputs:
        stage, part = self._stage, self._stage.part
        splits = part is not None and batch.num_decodes < len(batch.chunks)
        multiple = stage.multiple
        if splits:
            assert part is not None
            multiple *= part.count * (2 if part.zigzag else 1)
        inputs = make_inputs(
            batch,
            stage.paging,
            multiple=multiple,
            dtype=stage.dtype,
            device=self._place.device,
            history_only=splits,
            windows=stage.windows,
        )
        return own_part(inputs, part) if splits and part is not None else inputs

    def _receive(self, num_tokens: int) -> Tensor:
        stream_1SD = self._empty(num_tokens)
        dist.recv(stream_1SD, group=self._place.pp, group_src=self._place.stage - 1)
        return stream_1SD

    def _empty(self, num_tokens: int) -> Tensor:
        dim, stage = self._stage.model.model.dim, self._stage
        return torch.empty(1, num_tokens, dim, dtype=stage.dtype, device=self._place.device)

    def _send(self, stream_1SD: Tensor) -> None:
        """Hand the stream on, without waiting for who takes it."""
        if self._sent is not None and self._sent[1] is not None:
            self._sent[1].wait()
        stream_1SD = stream_1SD.contiguous()
        work = dist.isend(stream_1SD, group=self._place.pp, group_dst=self._place.stage + 1)
        self._sent = (stream_1SD, work)  # kept until it is gone
