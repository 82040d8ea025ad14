"""The front's side of the links: leaders connect, requests go out, tokens come back to who waits.

A request belongs to one replica until it ends. When that replica's link breaks, whoever waits for
one of its requests is told at once: `ReplicaLostError`.
"""

import asyncio
import hmac
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from parctl.errors import ParctlError
from parctl.recipes.frozen import from_json
from parctl.runtime.inference.request import Emitted, Request
from parctl.runtime.serving.routing import PrefixRouter
from parctl.runtime.serving.wire import MOST_LINE, Hello, pack, pack_request, tokens_from, unpack

HELLO_S = 10.0  # from connecting to saying who one is
CLOSE_S = 3.0  # for leaders to end their links: a step may be under way


class ReplicaLostError(ParctlError):
    """The engine that had the request is gone."""


class RefusedError(ParctlError):
    """The engine did not take the request."""


@dataclass(slots=True, kw_only=True, eq=False)
class Running:
    """A request on its way. `events` holds lists of tokens, or what ended it."""

    request: Request
    replica: int
    num_left: int  # samples
    events: "asyncio.Queue[list[Emitted] | ParctlError]" = field(default_factory=asyncio.Queue)


@dataclass(slots=True, kw_only=True, eq=False)
class Replica:
    hello: Hello
    writer: asyncio.StreamWriter
    running: dict[str, Running] = field(default_factory=dict)
    stats: Mapping[str, Any] = field(default_factory=dict)


class Hub:
    """`num_replicas` leaders are waited for; `lost` and `drain` are called when they say so."""

    def __init__(
        self,
        token: str,
        num_replicas: int,
        *,
        lost: Callable[[], None],
        drain: Callable[[], None],
    ) -> None:
        self._token, self._num_replicas = token, num_replicas
        self._lost, self._drain = lost, drain
        self.replicas: dict[int, Replica] = {}
        self._router = PrefixRouter()
        self._num_requests = 0
        self._server: asyncio.Server | None = None
        self._closing = False

    async def listen(self, host: str) -> int:
        """Wait for leaders. Returns the port."""
        self._server = await asyncio.start_server(self._serve, host, 0, limit=MOST_LINE)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def ready(self) -> bool:
        return len(self.replicas) == self._num_replicas

    @property
    def limits(self) -> Hello | None:
        """What every replica takes; they are alike. None: none is there."""
        return next((replica.hello for replica in self.replicas.values()), None)

    def submit(self, request: Request) -> Running:
        """Send a request to a replica. Raises ReplicaLostError when none is there."""
        if not self.replicas:
            raise ReplicaLostError("no engine is there")
        loads = {number: len(replica.running) for number, replica in self.replicas.items()}
        number = self._router.choose(request.prompt_tokens, loads)
        self._num_requests += 1
        request = replace(request, id=f"{self._num_requests}")
        running = Running(request=request, replica=number, num_left=request.n)
        replica = self.replicas[number]
        replica.running[request.id] = running
        replica.writer.write(pack_request(request))
        return running

    def cancel(self, running: Running, sample_index: int | None = None) -> None:
        """End a request or one of its samples early; what has ended already stays ended."""
        replica = self.replicas.get(running.replica)
        if replica is None or running.request.id not in replica.running:
            return
        replica.writer.write(pack("cancel", [running.request.id, sample_index]))
        if sample_index is None:
            del replica.running[running.request.id]
        else:
            self._sample_ended(replica, running)

    async def close(self) -> None:
        """Let the leaders go; each ends its link when it has heard."""
        self._closing = True
        for replica in self.replicas.values():
            replica.writer.write(pack("close", {}))
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                while self.replicas:
                    await asyncio.sleep(0.01)
        for replica in self.replicas.values():
            replica.writer.transport.abort()
        await asyncio.sleep(0.05)  # for what read from them to notice
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = None
        try:
            async with asyncio.timeout(HELLO_S):
                hello = self._read_hello(await reader.readline())
            if hello is None or hello.replica in self.replicas:
                return
            number = hello.replica
            replica = self.replicas[number] = Replica(hello=hello, writer=writer)
            while line := await reader.readline():
                self._hear(replica, *unpack(line))
        # a broken link is a lost one, and who speaks otherwise is no leader
        except (OSError, TimeoutError, ValueError, KeyError, TypeError):
            pass
        finally:
            writer.close()
            if number is not None:
                self._lose(number)

    def _read_hello(self, line: bytes) -> Hello | None:
        if not line:
            return None
        kind, content = unpack(line)
        if kind != "hello" or not isinstance(content, dict):
            return None
        hello = from_json(Hello, content)
        return hello if hmac.compare_digest(hello.token.encode(), self._token.encode()) else None

    def _hear(self, replica: Replica, kind: str, content: Any) -> None:
        if kind == "tokens":
            self._deliver(replica, tokens_from(content))
        elif kind == "stats":
            replica.stats = content
        elif kind == "refused":
            request_id, why = content
            running = replica.running.pop(request_id, None)
            if running is not None:
                running.events.put_nowait(RefusedError(why))
        elif kind == "drain":
            self._drain()

    def _deliver(self, replica: Replica, emitted: list[Emitted]) -> None:
        by_request: dict[str, list[Emitted]] = {}
        for one in emitted:
            by_request.setdefault(one.request_id, []).append(one)
        for request_id, own in by_request.items():
            running = replica.running.get(request_id)
            if running is None:  # cancelled, while these were on the way
                continue
            running.events.put_nowait(own)
            for one in own:
                if one.finish_reason is not None:
                    self._sample_ended(replica, running)

    def _sample_ended(self, replica: Replica, running: Running) -> None:
        running.num_left -= 1
        if running.num_left <= 0:
            replica.running.pop(running.request.id, None)

    def _lose(self, number: int) -> None:
        replica = self.replicas.pop(number)
        self._router.forget(number)
        for running in replica.running.values():
            running.events.put_nowait(
                ReplicaLostError("the engine that computed this request is gone: try again")
            )
        if not self._closing:
            self._lost()
