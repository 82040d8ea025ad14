"""Words between the pods of a run: lines of JSON over TCP, agent to leader and back.

Both sides speak every BEAT_S; who is silent for SILENT_S is gone. A process that dies closes its
connection at once, a node that dies does not.
"""

import json
import os
import select
import socket
import time
from collections.abc import Mapping
from typing import Any

BEAT_S = 2.0
SILENT_S = 15.0
SEND_S = 10.0
MAX_LINE_BYTES = 1 << 28  # a plan of 100,000 ranks is 20 MB


class ChannelClosedError(Exception):
    """The other end is gone."""


class Channel:
    """One connection. `receive` never waits, `send` at most SEND_S."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._received = bytearray()
        self._closed = False
        self.heard = time.monotonic()
        self._spoke = time.monotonic()

    def fileno(self) -> int:
        return self._connection.fileno()

    @property
    def silent_s(self) -> float:
        return time.monotonic() - self.heard

    def send(self, message: Mapping[str, Any]) -> None:
        """Raises ChannelClosedError."""
        left = memoryview(json.dumps(message).encode() + b"\n")
        room = select.poll()
        room.register(self._connection, select.POLLOUT)
        while left:
            try:
                left = left[self._connection.send(left) :]
            except BlockingIOError:
                if not room.poll(SEND_S * 1000):
                    raise ChannelClosedError(f"it takes nothing for {SEND_S:g} s") from None
            except OSError as error:
                raise ChannelClosedError(error.strerror or str(error)) from error
        self._spoke = time.monotonic()

    def beat(self) -> None:
        """Say something if nothing was said for a while. Raises ChannelClosedError."""
        if time.monotonic() - self._spoke > BEAT_S:
            self.send({"beat": 1})

    def receive(self) -> list[dict[str, Any]]:
        """Return the whole messages that are there. Raises ChannelClosedError after the last."""
        if self._closed:
            raise ChannelClosedError("closed")
        while len(self._received) < MAX_LINE_BYTES:
            try:
                data = self._connection.recv(1 << 20)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                data = b""
            if not data:
                self._closed = True
                break
            self.heard = time.monotonic()
            self._received += data
        *lines, rest = bytes(self._received).split(b"\n")
        self._received = bytearray(rest)
        messages = [json.loads(line) for line in lines]
        if self._closed and not messages:
            raise ChannelClosedError("closed")
        return [message for message in messages if "beat" not in message]

    def close(self) -> None:
        self._connection.close()


def listen(port: int) -> socket.socket:
    """Listen on every address of the pod, IPv6 too where there is any. Raises OSError."""
    dual = socket.has_ipv6 and socket.has_dualstack_ipv6() and os.path.exists("/proc/net/if_inet6")
    family = socket.AF_INET6 if dual else socket.AF_INET
    listener = socket.create_server(("", port), family=family, dualstack_ipv6=dual, backlog=1024)
    listener.setblocking(False)
    return listener
