"""Waiting for whatever happens first: a child's exit, a signal to us, a line from a pipe, or time.

The supervisor has one thread and one such wait. Signals arrive through a wake-up pipe, so none is
missed between looking and sleeping, and no code of ours runs inside a signal handler.
"""

import contextlib
import os
import selectors
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """The end of one child. `code` is negative for a signal, as in subprocess."""

    pid: int
    code: int
    time_unix: float


class Children:
    """Make one, early, in the main thread; it takes over SIGCHLD, SIGTERM, SIGINT and SIGHUP."""

    def __init__(self) -> None:
        self.stops_asked = 0  # how often somebody sent us SIGTERM or SIGINT
        self._selector = selectors.DefaultSelector()
        self._wakeup, write_end = os.pipe()
        os.set_blocking(self._wakeup, False)
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        # handlers, not SIG_IGN: an ignored signal would stay ignored in the ranks
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, _nothing)
        self._selector.register(self._wakeup, selectors.EVENT_READ)

    def watch(self, fd: int) -> None:
        """Wake up also when `fd` can be read."""
        self._selector.register(fd, selectors.EVENT_READ)

    def unwatch(self, fd: int) -> None:
        self._selector.unregister(fd)

    def wait(self, timeout_s: float) -> Sequence[Exit]:
        """Sleep until something happens, at most `timeout_s`; return the children that exited."""
        self._selector.select(max(timeout_s, 0.0))
        with contextlib.suppress(BlockingIOError):
            for number in os.read(self._wakeup, 4096):
                self.stops_asked += number in (signal.SIGTERM, signal.SIGINT)
        return self._reap()

    def _reap(self) -> list[Exit]:
        exits: list[Exit] = []
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return exits
            if pid == 0:
                return exits
            code = os.waitstatus_to_exitcode(status)
            exits.append(Exit(pid=pid, code=code, time_unix=time.time()))


def _nothing(number: int, frame: FrameType | None) -> None:
    """The wake-up pipe has already noted the signal."""
