"""What a step computes: generating sequences first, then prompts in chunks, then those who wait."""

from collections.abc import Sequence

from parctl.runtime.inference.batch import Batch
from parctl.runtime.inference.block_manager import BlockManager
from parctl.runtime.inference.config import EngineConfig
from parctl.runtime.inference.request import Emitted, Request, Sampled, Sampling
from parctl.runtime.inference.scheduler import Scheduler


def make(
    *,
    num_blocks: int = 100,
    budget: int = 8,
    host: int = 0,
    max_sequences: int = 8,
    in_flight: int = 1,
    prefix_cache: bool = False,
    window: int | None = None,
    max_context: int = 64,
) -> Scheduler:
    config = EngineConfig(
        num_blocks=num_blocks,
        block_size=4,
        max_tokens_per_step=budget,
        max_sequences=max_sequences,
        preemption="swap" if host else "recompute",
    )
    blocks = BlockManager(
        num_blocks, 4, num_host_blocks=host, prefix_cache=prefix_cache, window=window
    )
    return Scheduler(config, blocks, max_context=max_context, num_in_flight=in_flight)


def ask(name: str, length: int, *, n: int = 1, max_tokens: int = 8, client: str = "") -> Request:
    return Request(
        id=name,
        prompt_tokens=tuple(range(length)),
        sampling=Sampling(max_tokens=max_tokens, stop_tokens=(99,)),
        n=n,
        client=client,
    )


def work(batch: Batch) -> list[tuple[int, int]]:
    """Each chunk as its first position and its length."""
    return [(chunk.start, len(chunk.tokens)) for chunk in batch.chunks]


def answer(
    scheduler: Scheduler, batch: Batch, tokens: Sequence[int] | None = None
) -> list[Emitted]:
    given = tokens if tokens is not None else [7] * len(batch.rows)
    return scheduler.apply(
        batch, [Sampled(token=token, logprob=None, top_logprobs=()) for token in given]
    )


def test_a_long_prompt_is_computed_in_chunks_and_stops_nobody() -> None:
    scheduler = make()
    scheduler.add(ask("short", 3))
    first = scheduler.schedule()
    assert work(first) == [(0, 3)]
    answer(scheduler, first)
    scheduler.add(ask("long", 20))
    seen = []
    for _ in range(4):
        batch = scheduler.schedule()
        seen.append(work(batch))
        answer(scheduler, batch)
    assert seen == [
        [(3, 1), (0, 7)],
        [(4, 1), (7, 7)],
        [(5, 1), (14, 6)],  # now the long one has a token too
        [(6, 1), (20, 1)],
    ]


def test_with_a_window_a_long_sequence_holds_a_window_and_a_chunk() -> None:
    scheduler = make(num_blocks=5, window=6, max_context=500)  # chunks of 8 tokens
    scheduler.add(ask("long", 100, max_tokens=60))
    most = 0
    while scheduler.unfinished():
        answer(scheduler, scheduler.schedule())
        most = max(most, 5 - scheduler.blocks.num_free)
    assert scheduler.counts.output_tokens == 60
    assert scheduler.counts.preemptions == 0
    assert most == 4  # 5 tokens before a chunk and 8 in it: from position 3 to 15, for example
    assert scheduler.blocks.num_free == 5


def test_tokens_are_sampled_only_behind_a_whole_prompt() -> None:
    scheduler = make()
    scheduler.add(ask("long", 12))
    first, second = scheduler.schedule(), scheduler.schedule()
    assert (len(first.rows), len(second.rows)) == (0, 1)
    answer(scheduler, first)
    (emitted,) = answer(scheduler, second, [42])
    assert (emitted.request_id, emitted.token, emitted.finish_reason) == ("long", 42, None)


def test_a_stop_token_and_the_number_of_tokens_end_a_sample() -> None:
    scheduler = make()
    scheduler.add(ask("stops", 2, max_tokens=3))
    scheduler.add(ask("runs out", 2, max_tokens=2))
    answer(scheduler, scheduler.schedule())
    reasons = [one.finish_reason for one in answer(scheduler, scheduler.schedule(), [99, 5])]
    assert reasons == ["stop", "length"]
    assert scheduler.unfinished() == 0
    assert scheduler.blocks.num_free == 100


def test_the_context_ends_a_sample_too() -> None:
    scheduler = make(budget=64)
    scheduler.add(ask("long", 62, max_tokens=50))
    reasons = []
    while scheduler.unfinished():
        reasons += [one.finish_reason for one in answer(scheduler, scheduler.schedule())]
    assert reasons == [None, "length"]


def test_samples_share_the_prompt_and_copy_its_last_block() -> None:
    scheduler = make()
    scheduler.add(ask("three", 6, n=3))
    batch = scheduler.schedule()
    assert batch.chunk_of_row == [0, 0, 0]
    assert [row.sample_index for row in batch.rows] == [0, 1, 2]
    answer(scheduler, batch, [1, 2, 3])
    assert scheduler.blocks.num_free == 98
    batch = scheduler.schedule()
    assert [(one.kind, one.source) for one in batch.operations] == [("copy", 1), ("copy", 1)]
    assert [chunk.tokens for chunk in batch.chunks] == [(1,), (2,), (3,)]
    assert len({chunk.blocks[-1] for chunk in batch.chunks}) == 3
    assert {chunk.blocks[0] for chunk in batch.chunks} == {0}


def test_one_sample_may_end_at_its_first_token_and_the_others_go_on() -> None:
    scheduler = make()
    scheduler.add(ask("two", 6, n=2))
    emitted = answer(scheduler, scheduler.schedule(), [99, 3])
    assert [(one.sample_index, one.finish_reason) for one in emitted] == [(0, "stop"), (1, None)]
    assert [row.sample_index for row in scheduler.schedule().rows] == [1]


def test_the_newest_is_preempted_and_loses_no_token() -> None:
    scheduler = make(num_blocks=4)
    scheduler.add(ask("old", 4))
    scheduler.add(ask("new", 4))
    answer(scheduler, scheduler.schedule(), [10, 20])  # two blocks each from here on
    for tokens in ([11, 21], [12, 22], [13, 23], [14, 24]):
        answer(scheduler, scheduler.schedule(), tokens)
    batch = scheduler.schedule()  # position 8 wants a third block each
    assert scheduler.counts.preemptions == 1
    assert [row.request_id for row in batch.rows] == ["old"]
    emitted = answer(scheduler, batch)
    while not any(one.request_id == "new" for one in emitted):
        batch = scheduler.schedule()
        emitted = answer(scheduler, batch)
    # all of it is computed again, the five tokens that were there included
    assert batch.chunks[-1].tokens[-1] == 24
    (row,) = (row for row in batch.rows if row.request_id == "new")
    assert list(row.output_tokens)[:5] == [20, 21, 22, 23, 24]


def test_a_swapped_sequence_comes_back_without_being_computed_again() -> None:
    scheduler = make(num_blocks=4, host=4)
    scheduler.add(ask("old", 4))
    scheduler.add(ask("new", 4))
    for _ in range(5):
        answer(scheduler, scheduler.schedule())
    batch = scheduler.schedule()
    assert [one.kind for one in batch.operations] == ["out", "out"]
    answer(scheduler, batch)
    while "in" not in [one.kind for one in batch.operations]:
        batch = scheduler.schedule()
        answer(scheduler, batch)
    assert work(batch) == [(8, 1)]
    assert scheduler.counts.computed_tokens == 4 + 7 + 4 + 5


def test_preempted_ones_go_before_those_that_never_ran() -> None:
    scheduler = make(num_blocks=4)
    for name in ("old", "new", "later"):
        scheduler.add(ask(name, 4))
    order: list[str] = []
    while scheduler.unfinished():
        for one in answer(scheduler, scheduler.schedule()):
            if one.finish_reason:
                order.append(one.request_id)
    assert order == ["old", "new", "later"]
    assert scheduler.counts.preemptions > 0


def test_many_requests_of_one_client_do_not_keep_another_waiting() -> None:
    scheduler = make(budget=4, max_sequences=1)
    for number in range(5):
        scheduler.add(ask(f"flood {number}", 4, max_tokens=1, client="flood"))
    scheduler.add(ask("quiet", 4, max_tokens=1, client="quiet"))
    order = []
    while scheduler.unfinished():
        order += [one.request_id for one in answer(scheduler, scheduler.schedule())]
    assert order.index("quiet") == 1


def test_cancelled_requests_give_their_blocks_back_and_say_nothing_more() -> None:
    scheduler = make()
    scheduler.add(ask("runs", 6, n=2))
    scheduler.add(ask("waits", 60))
    batch = scheduler.schedule()
    scheduler.cancel("runs")
    scheduler.cancel("waits")
    scheduler.cancel("unknown")
    assert answer(scheduler, batch) == []
    assert (scheduler.unfinished(), scheduler.blocks.num_free) == (0, 100)
    assert {("runs", 0), ("runs", 1)} <= set(scheduler.take_ended())


def test_one_sample_of_several_is_cancelled() -> None:
    scheduler = make()
    scheduler.add(ask("two", 6, n=2))
    answer(scheduler, scheduler.schedule())
    scheduler.cancel("two", 0)
    assert [row.sample_index for row in scheduler.schedule().rows] == [1]


def test_a_pipeline_is_filled_with_even_batches() -> None:
    scheduler = make(in_flight=2)
    for number in range(4):
        scheduler.add(ask(str(number), 2))
    prompts = scheduler.schedule()
    assert len(prompts.chunks) == 4
    assert scheduler.schedule().chunks == []  # all newest tokens are on the way
    answer(scheduler, prompts)
    answer(scheduler, Batch(operations=[], chunks=[], rows=[], chunk_of_row=[]))
    first, second = scheduler.schedule(), scheduler.schedule()
    assert [row.request_id for row in first.rows] == ["0", "1"]
    assert [row.request_id for row in second.rows] == ["2", "3"]


def test_a_prompt_fills_the_pipeline_with_its_chunks() -> None:
    scheduler = make(in_flight=2)
    scheduler.add(ask("long", 16))
    assert [work(scheduler.schedule()), work(scheduler.schedule())] == [[(0, 8)], [(8, 8)]]


def test_a_preempted_sequence_keeps_the_token_that_was_on_its_way() -> None:
    scheduler = make(num_blocks=4, in_flight=2)
    scheduler.add(ask("old", 4, max_tokens=12))
    scheduler.add(ask("new", 4, max_tokens=12))
    on_the_way: list[Batch] = []
    tokens: dict[str, list[int]] = {"old": [], "new": []}
    count = 0
    while scheduler.unfinished():
        on_the_way.append(scheduler.schedule())
        if len(on_the_way) == 2:
            batch = on_the_way.pop(0)
            # a token that says which one it is: none may be lost or come twice
            given = [10 * (row.request_id == "new") + len(row.output_tokens) for row in batch.rows]
            for one in answer(scheduler, batch, given):
                tokens[one.request_id].append(one.token)
        count += 1
        assert count < 200
    assert scheduler.counts.preemptions > 0
    assert tokens == {"old": list(range(12)), "new": [10 + index for index in range(12)]}


def test_a_shared_beginning_is_computed_once() -> None:
    scheduler = make(budget=32, prefix_cache=True)
    scheduler.add(ask("first", 10))
    answer(scheduler, scheduler.schedule())
    scheduler.add(ask("second", 11))
    assert work(scheduler.schedule()) == [(10, 1), (8, 3)]
    assert (scheduler.counts.prompt_tokens, scheduler.counts.cached_tokens) == (21, 8)
