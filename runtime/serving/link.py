"""A leader's end of the link to the front: lines out, lines in, never waiting longer than asked."""

import select
import socket
from collections.abc import Sequence
from typing import Any

from parctl.errors import ParctlError
from parctl.recipes.frozen import to_json
from parctl.runtime.inference.request import Emitted
from parctl.runtime.serving.wire import Hello, pack, pack_tokens, unpack

PIECE = 1 << 16  # bytes
CONNECT_S = 30.0


class FrontLostError(ParctlError):
    """The process that clients talk to is gone."""


class Link:
    def __init__(self, address: tuple[str, int], hello: Hello) -> None:
        try:
            self._socket = socket.create_connection(address, timeout=CONNECT_S)
        except OSError as error:
            raise FrontLostError(f"cannot reach the front at {address}: {error}") from error
        self._socket.settimeout(None)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._read = b""
        self._send(pack("hello", to_json(hello)))

    def receive(self, wait_s: float) -> list[tuple[str, Any]]:
        """Return what has come; wait for something for so long. FrontLostError: it is gone."""
        messages: list[tuple[str, Any]] = []
        while True:
            ready, _, _ = select.select([self._socket], [], [], wait_s)
            if not ready:
                return messages
            piece = self._socket.recv(PIECE)
            if not piece and messages:
                return messages  # what was said last comes before the end
            if not piece:
                raise FrontLostError("the front process ended")
            *lines, self._read = (self._read + piece).split(b"\n")
            messages += [unpack(line) for line in lines]
            wait_s = 0.0

    def tokens(self, emitted: Sequence[Emitted]) -> None:
        if emitted:
            self._send(pack_tokens(emitted))

    def say(self, kind: str, content: Any) -> None:
        self._send(pack(kind, content))

    def close(self) -> None:
        self._socket.close()

    def _send(self, line: bytes) -> None:
        try:
            self._socket.sendall(line)
        except OSError as error:
            raise FrontLostError(f"the front process ended: {error}") from error
