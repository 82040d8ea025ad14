"""The engine: requests in, tokens out, one step at a time; the same program on every rank.

    leader     add(request) ... step() ... step() -> tokens
    others     follow()

A step is: hear what is new, schedule, compute, sample, apply. Every rank has the whole scheduler
and makes the same decisions from the same news, so all that crosses the ranks beside the model's
own exchanges is one small message per step: new and cancelled requests, and the tokens of the step
before. The leader, the first rank of a replica, makes it; tokens come to it from the first rank of
the last pipeline stage.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from parctl.errors import UsageError
from parctl.runtime.inference.batch import Batch
from parctl.runtime.inference.block_manager import BlockManager
from parctl.runtime.inference.config import EngineConfig
from parctl.runtime.inference.packed import weight_bytes
from parctl.runtime.inference.place import Place, any_of, hand_to_leader, tell
from parctl.runtime.inference.request import Emitted, Request, Sampled, Sampler
from parctl.runtime.inference.runner import Runner
from parctl.runtime.inference.scheduler import Scheduler
from parctl.runtime.inference.stage import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What the leader tells all ranks before a step."""

    added: Sequence[Request] = ()
    cancelled: Sequence[tuple[str, int | None]] = ()
    sampled: Sequence[Sampled] = ()  # of the batch that was through in the step before
    stop: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """How things stand. Token counts are sums since the start."""

    steps: int
    running: int
    waiting: int
    num_blocks: int
    free_blocks: int
    block_bytes: int  # of one block on this rank, all its layers
    token_bytes: int  # of one token's keys and values in this rank's layers and heads
    held_tokens: int  # whose keys and values are in blocks that sequences hold, shared ones once
    held_slots: int  # room for tokens in these blocks
    prompt_tokens: int
    cached_tokens: int  # of them, not computed because the prefix cache had them
    computed_tokens: int
    output_tokens: int
    preemptions: int
    finished: int

    @property
    def waste(self) -> float:
        """Share of the held memory without a token in it."""
        return 1 - self.held_tokens / self.held_slots if self.held_slots else 0.0


@dataclass(slots=True, kw_only=True)
class Inbox:
    """What came in since the last step, on the leader."""

    added: list[Request] = field(default_factory=list)
    cancelled: list[tuple[str, int | None]] = field(default_factory=list)


class Engine:
    """A replica's engine; on each of its ranks one."""

    def __init__(self, stage: Stage, config: EngineConfig, place: Place, sampler: Sampler) -> None:
        model, paging = stage.model.model, stage.paging
        blocks = BlockManager(
            config.num_blocks,
            paging.tokens_per_block,
            num_host_blocks=config.num_host_blocks,
            prefix_cache=config.prefix_cache,
            window=model.kept_window,
        )
        longest = min(config.max_context or model.max_seq_len, model.max_seq_len)
        if blocks.most_at_once(longest, config.max_tokens_per_step) > config.num_blocks:
            longest = min(longest, config.num_blocks * paging.tokens_per_block)
        self.max_context = longest
        self._config, self._place, self._stage = config, place, stage
        self._vocab_size = model.vocab_size
        self._sampler = sampler
        self._runner = Runner(stage, place, sampler)
        self._scheduler = Scheduler(
            config,
            blocks,
            max_context=longest,
            num_in_flight=place.num_stages,
        )
        self._inbox = Inbox()
        self._through: Batch | None = None  # on followers: whose tokens are to come
        self._sampled: Sequence[Sampled] = ()
        self._others_work = bool(place.together)  # until all have said otherwise
        self._steps = 0

    @property
    def is_leader(self) -> bool:
        return self._place.is_leader

    @property
    def weight_bytes(self) -> int:
        """Of the parameters on this rank."""
        return weight_bytes(self._stage.model)

    def add(self, request: Request) -> None:
        """Queue a request, on the leader. Raises UsageError for one that cannot be served."""
        assert self.is_leader
        self._refuse_bad(request)
        if request.sampling.seed is None:
            drawn = replace(request.sampling, seed=secrets.randbits(63))
            request = replace(request, sampling=drawn)
        self._inbox.added.append(request)

    def cancel(self, request_id: str, sample_index: int | None = None) -> None:
        """End a request or one of its samples, on the leader. No more tokens of it come."""
        assert self.is_leader
        self._inbox.cancelled.append((request_id, sample_index))

    def unfinished(self) -> int:
        """How many samples have not ended, those that were just added included.

        Where replicas step together it is not 0 as long as any of them has work.
        """
        added = sum(request.n for request in self._inbox.added)
        return self._scheduler.unfinished() + added or int(self._others_work)

    def step(self) -> list[Emitted]:
        """Compute one step, on the leader. Returns its new tokens.

        In a pipeline a token comes as many steps after it was begun as there are stages, less one.
        Without anything to do a step is only a sign of life to the other ranks. Where experts are
        dealt out over replicas all leaders must go on stepping until `unfinished` is 0 for all: a
        step waits for the other replicas' steps.
        """
        assert self.is_leader
        news = News(added=self._inbox.added, cancelled=self._inbox.cancelled, sampled=self._sampled)
        self._inbox = Inbox()
        tell(self._place.replica, news)
        self._hear(news)
        sampled = self._compute()
        self._sampled = ()
        through = self._runner.through
        if through is None:
            return []
        if through.rows and not self._place.is_sampler:
            sampled = hand_to_leader(self._place, None)
        self._sampled = sampled
        emitted = self._scheduler.apply(through, sampled)
        self._forget_ended()
        return emitted

    def follow(self) -> None:
        """Compute the leader's steps, on another rank, until it closes."""
        assert not self.is_leader
        while True:
            news: News = tell(self._place.replica, None)
            if self._through is not None:
                self._scheduler.apply(self._through, news.sampled)
            if news.stop:
                return
            self._hear(news)
            sampled = self._compute()
            self._through = self._runner.through
            if self._through is not None and self._through.rows and self._place.is_sampler:
                hand_to_leader(self._place, sampled)

    def close(self) -> None:
        """Let the other ranks' `follow` return. Requests that are there are dropped.

        Where replicas step together it steps on, without requests, until all have done their work.
        """
        assert self.is_leader
        if self._place.together:
            self._inbox.added.clear()
            for sequence in self._scheduler.sequences():
                self.cancel(sequence.request.id)
            while self.unfinished():
                self.step()
        tell(self._place.replica, News(sampled=self._sampled, stop=True))

    def stats(self) -> EngineStats:
        scheduler, blocks = self._scheduler, self._scheduler.blocks
        counts = scheduler.counts
        block_bytes = self._stage.cache.num_bytes // (self._config.num_blocks + 1)
        filled: dict[int, int] = {}
        for sequence in scheduler.running:
            table = sequence.table
            for index, block in enumerate(table.blocks[table.num_gone :], table.num_gone):
                tokens = sequence.num_scheduled - index * blocks.block_size
                tokens = max(min(tokens, blocks.block_size), filled.get(block, 0))
                filled[block] = tokens
        return EngineStats(
            steps=self._steps,
            running=sum(sequence.num_samples for sequence in scheduler.running),
            waiting=scheduler.num_waiting,
            num_blocks=blocks.num_blocks,
            free_blocks=blocks.num_free,
            block_bytes=block_bytes,
            token_bytes=block_bytes // self._config.block_size,
            held_tokens=sum(filled.values()),
            held_slots=len(filled) * blocks.block_size,
            prompt_tokens=counts.prompt_tokens,
            cached_tokens=counts.cached_tokens,
            computed_tokens=counts.computed_tokens,
            output_tokens=counts.output_tokens,
            preemptions=counts.preemptions,
            finished=counts.finished,
        )

    def _hear(self, news: News) -> None:
        for request in news.added:
            self._scheduler.add(request)
        for request_id, sample_index in news.cancelled:
            self._scheduler.cancel(request_id, sample_index)
        self._forget_ended()

    def _compute(self) -> list[Sampled]:
        self._steps += 1
        has_work = self._runner.take(self._scheduler.schedule())
        if not self._place.together:
            return self._runner.step(join_in=False)
        unfinished = self._scheduler.unfinished() > 0
        join_in, self._others_work = any_of(self._place, has_work, unfinished)
        return self._runner.step(join_in=join_in)

    def _forget_ended(self) -> None:
        for request_id, sample_index in self._scheduler.take_ended():
            if self._place.is_sampler:
                self._sampler.forget(request_id, sample_index)

    def _refuse_bad(self, request: Request) -> None:
        length, sampling = len(request.prompt_tokens), request.sampling
        if length == 0:
            raise UsageError(
                f"request {request.id}: the prompt has no tokens",
                hint="begin with the model's token for a beginning",
            )
        if length >= self.max_context:
            raise UsageError(
                f"request {request.id}: the prompt has {length} tokens, and prompt and output "
                f"together have at most {self.max_context}",
                hint="shorten the prompt, or give the engine more memory or a longer max_context",
            )
        wrong = [token for token in request.prompt_tokens if not 0 <= token < self._vocab_size]
        if wrong:
            raise UsageError(
                f"request {request.id}: token {wrong[0]} is not one of {self._vocab_size}",
                hint="is the tokenizer that of the model?",
            )
        if not 1 <= request.n <= self._config.max_sequences:
            raise UsageError(
                f"request {request.id}: n = {request.n}, expected 1 to "
                f"{self._config.max_sequences}, the sequences in memory at once",
                hint="ask for fewer samples",
            )
        if sampling.max_tokens < 1:
            raise UsageError(
                f"request {request.id}: max_tokens = {sampling.max_tokens}",
                hint="ask for one token at least",
            )
