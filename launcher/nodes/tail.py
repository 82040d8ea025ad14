"""Reading what a growing file has got since the last time, in whole lines.

A file may grow faster than anybody reads. Then it keeps what was not read yet, no more than a piece
of it is in memory at a time, and at the file's end all but the newest MOST_LEFT_BYTES are left out,
with a line that says so.
"""

import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

MOST_BYTES = 256 * 1024  # of one file at a time: a rank that floods its log holds up no other
MOST_LEFT_BYTES = 4 * 1024 * 1024  # that may still be unread when the writer has ended


class Tail:
    """One file, which need not exist yet."""

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        self._path = path
        self._offset = _size(path) if from_end else 0
        self._partial = b""

    @property
    def has_more(self) -> bool:
        return _size(self._path) > self._offset

    def pieces(self, last: bool = False) -> Iterator[list[str]]:
        """Yield lines that are new, MOST_BYTES of them; `last`: all, also one never finished."""
        if last:
            yield from self._skip()
        while self.has_more:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(MOST_BYTES)
            self._offset += len(data)
            *whole, self._partial = (self._partial + data).split(b"\n")
            if len(self._partial) >= MOST_BYTES:  # a line without an end
                whole.append(self._partial)
                self._partial = b""
            yield [_text(line) for line in whole]
            if not last:
                break
        if last and self._partial:
            yield [_text(self._partial)]
            self._partial = b""

    def lines(self, last: bool = False) -> Iterator[str]:
        """What `pieces` yields, line by line."""
        return chain.from_iterable(self.pieces(last))

    def _skip(self) -> Iterator[list[str]]:
        too_many = _size(self._path) - self._offset - MOST_LEFT_BYTES
        if too_many > 0:
            self._offset += too_many
            self._partial = b""
            yield [f"({too_many:,} bytes are left out here: they came faster than they were read)"]


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\r")


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
