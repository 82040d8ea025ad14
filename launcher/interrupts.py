"""^C in the middle of what must not be left half done."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Do what takes seconds at most in spite of ^C."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def interrupt_put_off() -> Iterator[None]:
    """Let a ^C wait until the end of the block, where it is as it would have been."""
    if threading.current_thread() is not threading.main_thread():  # no ^C reaches it
        yield
        return
    asked = False

    def note(number: int, frame: object) -> None:
        nonlocal asked
        asked = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        signal.raise_signal(signal.SIGINT)
