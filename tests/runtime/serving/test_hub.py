"""The hub with leaders that are sockets of the test: who gets what, and what is lost with whom."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from parctl.recipes.frozen import to_json
from parctl.runtime.inference.request import Emitted, Request, Sampling
from parctl.runtime.serving.hub import Hub, RefusedError, ReplicaLostError
from parctl.runtime.serving.wire import Hello, pack, pack_tokens, unpack

HELLO = Hello(token="secret", replica=0, vocab_size=9, max_context=8, max_sequences=4)
REQUEST = Request(id="", prompt_tokens=(1, 2), sampling=Sampling(), n=1)


@dataclass(kw_only=True)
class Leader:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def hear(self) -> tuple[str, Any]:
        return unpack(await asyncio.wait_for(self.reader.readline(), 10))

    def token(self, request_id: str, token: int, finish: str | None = None) -> None:
        emitted = Emitted(
            request_id=request_id,
            sample_index=0,
            token=token,
            logprob=None,
            top_logprobs=(),
            finish_reason=finish,  # type: ignore[arg-type]
        )
        self.writer.write(pack_tokens([emitted]))


@dataclass(kw_only=True)
class Place:
    hub: Hub
    port: int
    happened: list[str] = field(default_factory=list)

    async def connect(self, hello: Hello) -> Leader:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(pack("hello", to_json(hello)))
        return Leader(reader=reader, writer=writer)

    async def leaders(self, count: int) -> list[Leader]:
        leaders = [await self.connect(replace(HELLO, replica=i)) for i in range(count)]
        await until(lambda: len(self.hub.replicas) == count)
        return leaders


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.01)


def with_hub(story: Callable[[Place], Coroutine[Any, Any, None]], replicas: int = 1) -> None:
    async def told() -> None:
        happened: list[str] = []
        hub = Hub(
            "secret",
            replicas,
            lost=lambda: happened.append("lost"),
            drain=lambda: happened.append("drain"),
        )
        place = Place(hub=hub, port=await hub.listen("127.0.0.1"), happened=happened)
        await story(place)
        await hub.close()

    asyncio.run(told())


def test_tokens_reach_the_request_that_they_are_of() -> None:
    async def story(place: Place) -> None:
        (leader,) = await place.leaders(1)
        one, two = place.hub.submit(REQUEST), place.hub.submit(REQUEST)
        ids = [(await leader.hear())[1]["id"] for _ in range(2)]
        assert ids == [one.request.id, two.request.id] and ids[0] != ids[1]
        leader.token(ids[1], 5)
        leader.token(ids[0], 6, "stop")
        first = await asyncio.wait_for(two.events.get(), 10)
        assert isinstance(first, list) and first[0].token == 5
        last = await asyncio.wait_for(one.events.get(), 10)
        assert isinstance(last, list) and last[0].token == 6
        assert list(place.hub.replicas[0].running) == [two.request.id]
        leader.writer.close()

    with_hub(story)


def test_a_lost_leader_is_told_to_who_waits_for_it_and_to_nobody_else() -> None:
    async def story(place: Place) -> None:
        leaders = await place.leaders(2)
        one, two = place.hub.submit(REQUEST), place.hub.submit(REQUEST)
        assert {one.replica, two.replica} == {0, 1}
        leaders[one.replica].writer.close()
        assert isinstance(await asyncio.wait_for(one.events.get(), 10), ReplicaLostError)
        assert two.events.empty()
        assert place.happened == ["lost"]
        assert not place.hub.ready
        leaders[two.replica].writer.close()
        await until(lambda: not place.hub.replicas)
        with pytest.raises(ReplicaLostError):
            place.hub.submit(REQUEST)

    with_hub(story, replicas=2)


def test_who_does_not_know_the_token_is_no_leader() -> None:
    async def story(place: Place) -> None:
        for hello in (replace(HELLO, token="guess"), replace(HELLO, token="")):
            stranger = await place.connect(hello)
            assert await asyncio.wait_for(stranger.reader.read(), 10) == b""
            stranger.writer.close()
        for rubbish in (b"\n", b"[1]\n", b"{\n", b'["tokens", []]\n', b'["hello", {}]\n'):
            reader, writer = await asyncio.open_connection("127.0.0.1", place.port)
            writer.write(rubbish)
            assert await asyncio.wait_for(reader.read(), 10) == b""
            writer.close()
        assert not place.hub.replicas and place.happened == []

    with_hub(story)


def test_what_the_engine_refuses_and_what_it_says_of_itself_is_passed_on() -> None:
    async def story(place: Place) -> None:
        (leader,) = await place.leaders(1)
        running = place.hub.submit(REQUEST)
        leader.writer.write(pack("refused", [running.request.id, "too long"]))
        leader.writer.write(pack("stats", {"running": 3}))
        leader.writer.write(pack("drain", {}))
        refused = await asyncio.wait_for(running.events.get(), 10)
        assert isinstance(refused, RefusedError) and refused.message == "too long"
        await until(lambda: place.happened == ["drain"])
        assert place.hub.replicas[0].stats == {"running": 3}
        leader.writer.close()

    with_hub(story)


def test_cancelled_requests_are_told_to_the_engine_and_late_tokens_are_dropped() -> None:
    async def story(place: Place) -> None:
        (leader,) = await place.leaders(1)
        running = place.hub.submit(replace(REQUEST, n=2))
        number = running.request.id
        assert (await leader.hear())[0] == "add"
        place.hub.cancel(running, 1)
        assert await leader.hear() == ("cancel", [number, 1])
        place.hub.cancel(running)
        assert await leader.hear() == ("cancel", [number, None])
        place.hub.cancel(running)  # it has ended: nobody is told again
        leader.token(number, 5)
        leader.writer.write(pack("drain", {}))
        await until(lambda: place.happened == ["drain"])
        assert running.events.empty()
        await asyncio.gather(place.hub.close(), end_when_told(leader))

    async def end_when_told(leader: Leader) -> None:
        assert await leader.hear() == ("close", {})
        leader.writer.close()

    with_hub(story)
