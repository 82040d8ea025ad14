"""The node process of a pod behind its two pipes (`parctl.launcher.nodes.node`)."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

BEAT_S = 2.0
LEAVE_S = 5.0


class NodePipe:
    """Starts the node process at once: it imports torch while the pods still gather."""

    def __init__(self, hello: Mapping[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "parctl.launcher.nodes.node"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input, self.output = self._process.stdin, self._process.stdout
        os.set_blocking(self.output.fileno(), False)
        self._partial = b""
        self._spoke = time.monotonic()
        self.alive = True
        self.send(hello)

    def send(self, message: Mapping[str, Any]) -> None:
        with suppress(OSError):  # it has gone, which is told by the end of its output
            self._input.write(json.dumps(message).encode() + b"\n")
            self._input.flush()
        self._spoke = time.monotonic()

    def beat(self) -> None:
        if time.monotonic() - self._spoke > BEAT_S:
            self.send({"beat": 1})

    def news(self) -> Iterator[dict[str, Any]]:
        """Yield what it has said since, a piece of it; at its end, with which code it left.

        Ranks may write faster than anybody prints: the rest waits in the pipe, and who asks has
        time for the leader in between.
        """
        if not self.alive:
            return
        try:
            data = os.read(self.output.fileno(), 1 << 20)
        except BlockingIOError:
            return
        if not data:
            self.alive = False
            yield {"gone": self._process.wait()}
            return
        *lines, self._partial = (self._partial + data).split(b"\n")
        yield from (json.loads(line) for line in lines)

    def dismiss(self) -> None:
        """End it, and wait until it has put its ranks in order."""
        self.send({"leave": 1})
        try:
            self._process.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
