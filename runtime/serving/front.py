"""The front process: `python -m parctl.runtime.serving.front`, started by the first rank.

An `Order` comes as a line of JSON on stdin. Two lines go to stdout: where leaders connect and where
clients do (or what is wrong), and `ready` once every leader is there. The end of stdin is the end
of the first rank.

SIGTERM, a leader's `drain`: new calls get 503, those under way have `drain_s`, then leaders are let
go. A leader that is gone: whoever waits for it is told, and the process ends, since its group is
about to be started anew with a front of its own.
"""

import asyncio
import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn

from parctl.errors import ParctlError, UsageError
from parctl.launcher.processes import die_with_parent, set_name
from parctl.recipes.frozen import from_json
from parctl.runtime.inference.chat import load_template
from parctl.runtime.inference.detokenize import load_text
from parctl.runtime.serving.app import Endpoint
from parctl.runtime.serving.ask import Reader
from parctl.runtime.serving.guard import Gate, Keys
from parctl.runtime.serving.hub import Hub
from parctl.runtime.serving.metrics import Metrics
from parctl.runtime.serving.order import Order, url_of

BACKLOG = 4096
LINGER_S = 1.0  # for answers on their way when the process ends
BIND_S = 5.0  # that the port of an attempt before may take to be free


class Server(uvicorn.Server):
    """uvicorn without its signal handlers: signals mean something else here."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Front:
    def __init__(self, order: Order) -> None:
        serve = order.serve
        self._order = order
        self._end = asyncio.Event()
        self._draining: asyncio.Task[None] | None = None
        self.gate = Gate(serve.max_concurrent)
        self.hub = Hub(order.token, order.num_replicas, lost=self._lost, drain=self.drain)
        key = None if serve.api_key_from is None else os.environ.get(serve.api_key_from, "")
        if key is not None and not key.strip():
            raise UsageError(
                f"serve.api_key_from: {serve.api_key_from} is empty",
                hint="`launch.secrets` says where its value comes from",
            )
        tokenizer = load_text(order.tokenizer)
        self.endpoint = Endpoint(
            hub=self.hub,
            reader=Reader(
                tokenizer=tokenizer,
                tokenizer_name=order.tokenizer,
                template=load_template(order.tokenizer, order.chat_template),
                defaults=serve.sampling,
            ),
            keys=Keys.read(key),
            gate=self.gate,
            metrics=Metrics(self.hub),
            model_name=serve.model_name,
            max_body_bytes=serve.max_body_bytes,
            max_samples=serve.max_samples,
            created=int(time.time()),
        )
        self.endpoint.metrics.under_way.set_function(lambda: self.gate.inside)

    async def run(self) -> None:
        """Serve until told to end."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.drain)
        bound = await bind(self._order.serve.host, self._order.serve.port)
        host, port = bound.getsockname()[:2]
        say({"leaders": await self.hub.listen(self._order.listen), "url": url_of(host, port)})
        server = Server(
            uvicorn.Config(
                self.endpoint.app(),
                log_level="warning",
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=int(LINGER_S) or 1,
                ws="none",
                server_header=False,
            )
        )
        serving = asyncio.create_task(server.serve(sockets=[bound]))
        announcing = asyncio.create_task(self._announce())
        ending = asyncio.create_task(self._end.wait())
        await asyncio.wait((serving, ending), return_when=asyncio.FIRST_COMPLETED)
        announcing.cancel()
        await self.gate.drained(LINGER_S)
        server.should_exit = True
        await serving
        await self.hub.close()

    def drain(self) -> None:
        """Take nothing new, and end when all is answered or the time is up."""
        self.gate.closed = True
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        await self.gate.drained(self._order.serve.drain_s)
        self._end.set()

    def _lost(self) -> None:
        self.gate.closed = True
        self._end.set()

    async def _announce(self) -> None:
        while not self.hub.ready:
            await asyncio.sleep(0.02)
        say({"ready": True})


async def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises UsageError when the address is taken or not ours."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise UsageError(
            f"serve.host = {host}: {error.strerror}", hint="an address of this machine"
        ) from error
    deadline = time.monotonic() + BIND_S
    while True:
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(address)
            bound.listen(BACKLOG)
            bound.setblocking(False)
            return bound
        except OSError as error:
            bound.close()
            if time.monotonic() >= deadline:
                raise UsageError(
                    f"cannot listen on {host} port {port}: {error.strerror}",
                    hint="free that port, or take another: `serve.port: 0` takes any free one",
                ) from error
        await asyncio.sleep(0.1)


def say(content: dict[str, Any]) -> None:
    with suppress(BrokenPipeError):
        print(json.dumps(content), flush=True)


def main() -> int:
    """Read the order, serve, and say on stdout what went wrong before that."""
    die_with_parent(signal.SIGTERM)
    set_name("parctl-front")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    order = from_json(Order, json.loads(sys.stdin.readline()))

    async def serve() -> None:
        await Front(order).run()

    try:
        asyncio.run(serve())
    except ParctlError as error:
        say({"error": error.message, "hint": error.hint})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
