"""Reading what a growing file has got since the last time, in whole lines."""

import os
from collections.abc import Iterator
from pathlib import Path

MOST_BYTES = 256 * 1024  # of one file at a time: a rank that floods its log holds up no other


class Tail:
    """One file, which need not exist yet."""

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        self._path = path
        self._offset = _size(path) if from_end else 0
        self._partial = b""

    def lines(self, last: bool = False) -> Iterator[str]:
        """Yield the lines that are new; `last`: all of them, also one that was never finished."""
        while _size(self._path) > self._offset:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(MOST_BYTES)
            self._offset += len(data)
            *whole, self._partial = (self._partial + data).split(b"\n")
            yield from (_text(line) for line in whole)
            if not last:
                break
        if last and self._partial:
            yield _text(self._partial)
            self._partial = b""


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\r")


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
