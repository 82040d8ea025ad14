"""The logs of a run: one file per rank and attempt, written by the ranks themselves.

Nobody stands between a rank and its file, so a rank never waits for a reader and loses nothing when
the supervisor dies. What such files lack is the time of each line: the supervisor notes once a
second how far every file has grown (`arrivals.jsonl`: `[time, {rank: bytes}]`), which is what
`--since` and the merged order go by.
"""

import heapq
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from parctl.launcher.backend import LogLine
from parctl.launcher.run_directory import RunDirectory

POLL_S = 0.1
TAIL_BYTES = 64 * 1024
_Line = tuple[float, int, int, str]  # time of arrival, rank, position in the file, text


def read_logs(
    run: RunDirectory, *, rank: int | None, since: float | None, tail: int | None
) -> Iterator[LogLine]:
    """Yield what has been written, attempt by attempt, ranks merged by the second of arrival.

    `since` is a time (unix seconds) to a second's grain; `tail` counts the last lines of each
    rank's newest attempt.
    """
    files = _files(run, rank)
    newest = max((number for number, _, _ in files), default=0)
    for attempt in sorted({number for number, _, _ in files}):
        if tail is not None and attempt != newest:
            continue
        paths = {number: path for found, number, path in files if found == attempt}
        yield from _merged(run, attempt, paths, since=since, tail=tail)


def follow_logs(
    run: RunDirectory,
    *,
    rank: int | None,
    since: float | None,
    tail: int | None,
    ended: Callable[[], bool],
) -> Iterator[LogLine]:
    """Yield what is there, then each line as it arrives, over restarts, until the run ends."""
    followers = {
        path: _Follower(path, number, offset=_end_of_lines(path))
        for _, number, path in _files(run, rank)
    }
    limits = {path: follower.offset for path, follower in followers.items()}
    newest = max((number for number, _, _ in _files(run, rank)), default=0)
    for attempt in sorted({int(path.parent.name.removeprefix("attempt-")) for path in limits}):
        if tail is None or attempt == newest:
            paths = {
                f.rank: f.path for f in followers.values() if f.path.parent == run.logs(attempt)
            }
            yield from _merged(run, attempt, paths, since=since, tail=tail, limits=limits)
    last = False
    while True:
        for _, number, path in _files(run, rank):
            followers.setdefault(path, _Follower(path, number))
        for follower in followers.values():
            yield from follower.read(last)
        if last:
            return
        # look once more after the end: the last lines may have come between reading and asking
        last = ended()
        if not last:
            time.sleep(POLL_S)


def last_lines(path: Path, count: int) -> list[str]:
    """Return the last `count` lines that are not empty, reading only the end of the file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-count:]


class Arrivals:
    """Notes how far the log files of one attempt have grown, a line each time that any has."""

    def __init__(self, run: RunDirectory, attempt: int, num_ranks: int) -> None:
        self._file = run.logs(attempt) / "arrivals.jsonl"
        self._logs = {rank: run.log(attempt, rank) for rank in range(num_ranks)}
        self._sizes: dict[int, int] = {}

    def note(self) -> None:
        sizes = {rank: _size(path) for rank, path in self._logs.items()}
        grown = {rank: size for rank, size in sizes.items() if size != self._sizes.get(rank, 0)}
        if grown:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps([round(time.time(), 3), grown], separators=(",", ":")) + "\n")
            self._sizes.update(grown)


def _files(run: RunDirectory, rank: int | None) -> list[tuple[int, int, Path]]:
    """Return (attempt, rank, path) of every log, in order."""
    found = []
    for path in run.path.glob("logs/attempt-*/rank-*.log"):
        number = int(path.stem.removeprefix("rank-"))
        if rank is None or number == rank:
            found.append((int(path.parent.name.removeprefix("attempt-")), number, path))
    return sorted(found)


def _merged(
    run: RunDirectory,
    attempt: int,
    paths: Mapping[int, Path],
    *,
    since: float | None,
    tail: int | None,
    limits: Mapping[Path, int] | None = None,
) -> Iterator[LogLine]:
    arrivals = _read_arrivals(run.logs(attempt) / "arrivals.jsonl")
    streams = []
    for rank, path in paths.items():
        marks = [(time_, sizes[str(rank)]) for time_, sizes in arrivals if str(rank) in sizes]
        lines: Iterable[_Line] = _timed_lines(
            path, rank, marks, limit=limits[path] if limits else None
        )
        if since is not None:
            lines = _after(lines, since)
        streams.append(lines if tail is None else deque(lines, maxlen=tail))
    # every stream is in the order of time, so this holds one line of each in memory
    yield from (LogLine(rank=line[1], text=line[3]) for line in heapq.merge(*streams))


def _after(lines: Iterable[_Line], since: float) -> Iterator[_Line]:
    return (line for line in lines if line[0] >= since)


def _read_arrivals(path: Path) -> list[tuple[float, Mapping[str, int]]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    entries = []
    for line in text.splitlines():
        try:
            time_, sizes = json.loads(line)
        except ValueError:  # the supervisor was killed in the middle of it
            continue
        entries.append((time_, sizes))
    return entries


def _timed_lines(
    path: Path, rank: int, marks: list[tuple[float, int]], *, limit: int | None
) -> Iterator[_Line]:
    """Yield the lines of a file, each with the first noted time at which it was there."""
    remaining = deque(marks)
    offset = 0
    with path.open("rb") as file:
        written = os.fstat(file.fileno()).st_mtime
        for position, line in enumerate(file):
            offset += len(line)
            if limit is not None and offset > limit:
                return
            while remaining and remaining[0][1] < offset:
                remaining.popleft()
            yield remaining[0][0] if remaining else written, rank, position, _text(line)


@dataclass(slots=True)
class _Follower:
    path: Path
    rank: int
    offset: int = 0
    partial: bytes = field(default=b"")

    def read(self, last: bool) -> Iterator[LogLine]:
        """Yield the whole lines that are new, and at the end also one that was never finished."""
        if _size(self.path) > self.offset:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read()
        else:
            data = b""
        self.offset += len(data)
        *lines, self.partial = (self.partial + data).split(b"\n")
        yield from (LogLine(rank=self.rank, text=_text(line)) for line in lines)
        if last and self.partial:
            yield LogLine(rank=self.rank, text=_text(self.partial))


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\r\n")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _end_of_lines(path: Path) -> int:
    """Return where the last whole line of a file ends."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - TAIL_BYTES)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0
