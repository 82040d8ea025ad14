"""What the next step computes: continuous batching (Orca) with chunked prefill (2308.16369).

Every step has room for `max_tokens_per_step` tokens, given in this order:

1. to sequences that generate, one token each, so that a long prompt never stops them;
2. to prompts that are partly computed, the oldest first, as much as is left;
3. to waiting prompts, by turns of their clients (`shares`), as long as there are free blocks for
   all of a prompt that has to be held at once.

When a running sequence needs a block and none is free, the newest sequence is pre-empted: its
blocks go to the host (`swap`), or are dropped and computed again (`recompute`). It waits before all
others of its client. The oldest sequence is never pre-empted, so every request ends.

A pipeline has several batches on the way. A sequence whose newest token is on the way has nothing
to compute and is left out; for even batches each takes its share of the generating sequences.

The same calls give the same batches on every rank: nothing here looks at clocks or devices.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from parctl.runtime.inference.batch import Batch, Chunk
from parctl.runtime.inference.block_manager import BlockManager, Operation
from parctl.runtime.inference.config import EngineConfig
from parctl.runtime.inference.request import (
    Emitted,
    FinishReason,
    Request,
    Sampled,
    SampleRow,
)
from parctl.runtime.inference.sequence import LiveSequence
from parctl.runtime.inference.shares import Shares


@dataclass(slots=True, kw_only=True)
class Counts:
    """What happened since the start."""

    prompt_tokens: int = 0  # of requests whose prompt began to be computed, with those in the cache
    cached_tokens: int = 0  # of them, found in the prefix cache
    computed_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    finished: int = 0


class Scheduler:
    """Owns all sequences of a replica. `num_in_flight` batches are on the way at once."""

    def __init__(
        self,
        config: EngineConfig,
        blocks: BlockManager,
        *,
        max_context: int,
        num_in_flight: int = 1,
    ) -> None:
        self._config, self.blocks = config, blocks
        self._max_context, self._num_in_flight = max_context, num_in_flight
        self._waiting: dict[str, list[LiveSequence]] = {}  # by client, who goes first at the front
        self.running: list[LiveSequence] = []  # oldest first
        self._shares = Shares()
        self._num_requests = 0
        self.counts = Counts()
        self._ended: list[tuple[str, int]] = []
        self._on_the_way: deque[list[LiveSequence]] = deque()  # by row of each batch

    @property
    def num_waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    def sequences(self) -> Iterable[LiveSequence]:
        """All that have not ended."""
        yield from self.running
        for queue in self._waiting.values():
            yield from queue

    def unfinished(self) -> int:
        """How many samples have not ended."""
        return sum(sequence.num_samples for sequence in self.sequences())

    def add(self, request: Request) -> None:
        self._shares.arrive(request.client, self._active())
        self._num_requests += 1
        sequence = LiveSequence(
            request=request,
            sample_index=0,
            num_samples=request.n,
            order=(request.arrival, self._num_requests),
        )
        self._queue(sequence)

    def cancel(self, request_id: str, sample_index: int | None = None) -> None:
        """End a request, or one of its samples. Unknown ones have ended already."""
        for sequence in list(self.sequences()):
            if sequence.request.id != request_id:
                continue
            if sample_index is None or (
                sequence.num_samples == 1 and sequence.sample_index == sample_index
            ):
                self._end(sequence)

    def take_ended(self) -> list[tuple[str, int]]:
        """Return the samples that have ended since the last call, and may have been sampled."""
        ended, self._ended = self._ended, []
        return ended

    def schedule(self) -> Batch:
        """Decide the next step. May be empty, when all that lives is on the way."""
        operations: list[Operation] = []
        chosen: list[tuple[LiveSequence, int]] = []  # and how many of its tokens
        budget = self._config.max_tokens_per_step
        share = -(-len(self.running) // self._num_in_flight)
        num_preempted = self.counts.preemptions
        for sequence in self.running:  # batches before this one are done before its tokens come
            self.blocks.slide(sequence.table, sequence.num_scheduled)
        for sequence in list(self.running):
            if len(chosen) >= min(share, budget):
                break
            if sequence.is_decoding and self._make_room(sequence, 1, chosen, operations):
                chosen.append((sequence, 1))
        budget -= len(chosen)
        for sequence in list(self.running):
            count = min(sequence.num_left, budget)
            if (
                count > 0
                and not sequence.is_decoding
                and self._make_room(sequence, count, chosen, operations)
            ):
                chosen.append((sequence, count))
                budget -= count
        while budget > 0 and self.counts.preemptions == num_preempted:
            admitted = self._admit(operations)
            if admitted is None:
                break
            count = min(admitted.num_left, budget)
            operations += self.blocks.grow(admitted.table, admitted.num_scheduled + count)
            chosen.append((admitted, count))
            budget -= count
        return self._batch(operations, chosen)

    def apply(self, batch: Batch, sampled: Sequence[Sampled]) -> list[Emitted]:
        """Add what was sampled from a batch to its sequences. Returns the new tokens.

        Batches come back in the order in which they were scheduled.
        """
        emitted = []
        forked: dict[int, list[LiveSequence]] = {}
        for row, first, choice in zip(batch.rows, self._on_the_way.popleft(), sampled, strict=True):
            if first.num_samples > 1 and not first.ended:
                forked[id(first)] = self._fork(first)
            family = forked.get(id(first), [first])
            sequence = family[row.sample_index - first.sample_index] if len(family) > 1 else first
            if sequence.ended:  # cancelled while it was on the way
                self._ended.append((row.request_id, row.sample_index))
                continue
            sequence.output.append(choice.token)
            self.counts.output_tokens += 1
            reason = self._finish_reason(sequence)
            emitted.append(
                Emitted(
                    request_id=row.request_id,
                    sample_index=row.sample_index,
                    token=choice.token,
                    logprob=choice.logprob,
                    top_logprobs=choice.top_logprobs,
                    finish_reason=reason,
                )
            )
            if reason is not None:
                self.counts.finished += 1
                self._end(sequence)
        return emitted

    def _finish_reason(self, sequence: LiveSequence) -> FinishReason | None:
        sampling = sequence.request.sampling
        if sequence.output[-1] in sampling.stop_tokens:
            return "stop"
        full = sequence.num_tokens >= self._max_context
        return "length" if full or len(sequence.output) >= sampling.max_tokens else None

    def _batch(self, operations: list[Operation], chosen: list[tuple[LiveSequence, int]]) -> Batch:
        # one-token chunks first, and of them the short contexts
        chosen.sort(key=lambda pair: (pair[1] > 1, pair[0].num_scheduled if pair[1] == 1 else 0))
        chunks, rows, chunk_of_row, row_sequences = [], [], [], []
        for sequence, count in chosen:
            start = sequence.num_scheduled
            sequence.num_scheduled += count
            chunks.append(
                Chunk(
                    tokens=sequence.tokens(start, start + count),
                    start=start,
                    blocks=tuple(sequence.table.blocks),
                )
            )
            self._remember(sequence)
            self._shares.charge(sequence.request.client, count)
            self.counts.computed_tokens += count
            if sequence.num_left > 0:
                continue
            for index in range(sequence.num_samples):
                rows.append(
                    SampleRow(
                        request_id=sequence.request.id,
                        sample_index=sequence.sample_index + index,
                        sampling=sequence.request.sampling,
                        prompt_tokens=sequence.request.prompt_tokens,
                        output_tokens=sequence.output,
                    )
                )
                chunk_of_row.append(len(chunks) - 1)
                row_sequences.append(sequence)
        batch = Batch(operations=operations, chunks=chunks, rows=rows, chunk_of_row=chunk_of_row)
        self._on_the_way.append(row_sequences)
        return batch

    def _remember(self, sequence: LiveSequence) -> None:
        size = self.blocks.block_size
        if sequence.num_scheduled // size > len(sequence.table.digests):
            tokens = sequence.tokens(0, sequence.num_scheduled)
            self.blocks.remember(sequence.table, tokens, sequence.num_scheduled)

    def _admit(self, operations: list[Operation]) -> LiveSequence | None:
        """Move the sequence whose turn it is to the running ones, if there is memory for it."""
        # pre-empted ones may wait for their newest token
        clients = [client for client, queue in self._waiting.items() if queue and queue[0].num_left]
        if not clients:
            return None
        queue = self._waiting[self._shares.next(clients)]
        sequence = queue[0]
        num_running = sum(one.num_samples for one in self.running)
        if num_running + sequence.num_samples > self._config.max_sequences:
            return None
        if sequence.host_blocks is not None:
            # with room for the token that it goes on with
            more_blocks = self.blocks.blocks_for(sequence.num_tokens) - self.blocks.blocks_for(
                sequence.num_scheduled
            )
            if len(sequence.host_blocks) + more_blocks > self.blocks.num_free:
                return None
            sequence.table, more = self.blocks.swap_in(sequence.host_blocks, sequence.num_scheduled)
            sequence.host_blocks = None
            operations += more
        else:
            table = self.blocks.open(sequence.tokens(0, sequence.num_tokens))
            # what was found may have been free: it is no longer
            needed = min(
                self.blocks.missing(table, sequence.num_tokens),
                self.blocks.most_at_once(sequence.num_tokens, self._config.max_tokens_per_step),
            )
            if needed > self.blocks.num_free:
                self.blocks.free(table)
                return None
            if not sequence.output:
                self.counts.prompt_tokens += sequence.num_tokens
                self.counts.cached_tokens += table.num_tokens
            sequence.table, sequence.num_scheduled = table, table.num_tokens
        queue.pop(0)
        self.running.append(sequence)
        self.running.sort(key=lambda running: running.order)
        return sequence

    def _make_room(
        self,
        sequence: LiveSequence,
        count: int,
        chosen: list[tuple[LiveSequence, int]],
        operations: list[Operation],
    ) -> bool:
        """Get a running sequence blocks for its next tokens, if need be those of newer ones.

        Returns whether it has them. When all newer ones are in the batch or gone, a sequence that
        generates is pre-empted itself, and a prompt keeps what it has and waits.
        """
        if sequence not in self.running:
            return False
        needed = sequence.num_scheduled + count
        while self.blocks.missing(sequence.table, needed) > self.blocks.num_free:
            victim = self._newest_but(chosen)
            if victim is sequence and not sequence.is_decoding:
                return False
            operations += self._preempt(victim)
            if victim is sequence:
                return False
        operations += self.blocks.grow(sequence.table, needed)
        return True

    def _newest_but(self, chosen: list[tuple[LiveSequence, int]]) -> LiveSequence:
        """Return the newest sequence that is not in the batch yet."""
        taken = {id(sequence) for sequence, _ in chosen}
        return next(one for one in reversed(self.running) if id(one) not in taken)

    def _preempt(self, sequence: LiveSequence) -> list[Operation]:
        self.counts.preemptions += 1
        self.running.remove(sequence)
        operations: list[Operation] = []
        swaps = self._config.preemption == "swap"
        swapped = self.blocks.swap_out(sequence.table) if swaps else None
        if swapped is not None:
            sequence.host_blocks, operations = swapped
        else:
            self.blocks.free(sequence.table)
            sequence.num_scheduled = 0
        self._queue(sequence)
        return operations

    def _fork(self, sequence: LiveSequence) -> list[LiveSequence]:
        """Let a sequence with n samples become n sequences; itself is the first.

        Where it has been pre-empted the others begin anew: blocks on the host are not shared.
        """
        is_running = sequence in self.running
        others = [
            replace(
                sequence,
                sample_index=sequence.sample_index + index,
                num_samples=1,
                output=list(sequence.output),
                table=self.blocks.fork(sequence.table),  # empty where it is not running
                host_blocks=None,
                num_scheduled=sequence.num_scheduled if is_running else 0,
            )
            for index in range(1, sequence.num_samples)
        ]
        sequence.num_samples = 1
        if is_running:
            place = self.running.index(sequence)
            self.running[place + 1 : place + 1] = others
        else:
            for other in others:
                self._queue(other)
        return [sequence, *others]

    def _queue(self, sequence: LiveSequence) -> None:
        """Put a sequence where its age wants it among those of its client."""
        queue = self._waiting.setdefault(sequence.request.client, [])
        queue.append(sequence)
        queue.sort(key=lambda waiting: waiting.order)

    def _end(self, sequence: LiveSequence) -> None:
        sequence.ended = True
        name, first = sequence.request.id, sequence.sample_index
        self._ended += [(name, first + index) for index in range(sequence.num_samples)]
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self._waiting[sequence.request.client].remove(sequence)
        self.blocks.free(sequence.table)
        if sequence.host_blocks is not None:
            self.blocks.free_host(sequence.host_blocks)
        if not self._waiting.get(sequence.request.client, True):
            del self._waiting[sequence.request.client]
        self._shares.forget_idle(self._active())

    def _active(self) -> set[str]:
        return {sequence.request.client for sequence in self.sequences()}
