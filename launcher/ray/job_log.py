"""The lines of a job's log: `2026-11-21T14:05:01.123Z [rank 3] text`, written and read back.

The driver prints every line of every rank into the log that Ray keeps, with the time at which it
was heard and who said it. `[parctl]` is the driver itself; what has no such beginning is Ray's.
"""

import re
import time
from calendar import timegm
from collections import deque
from collections.abc import Iterable, Iterator

from parctl.launcher.backend import LogLine

LINE = re.compile(
    r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\.(\d{3})Z \[(?:rank (\d+)|parctl)\] (.*)", re.S
)


def log_line(rank: int | None, text: str, *, now: float | None = None) -> str:
    """Write one line; no `rank`: the driver's own.

    >>> log_line(3, "step 1", now=1764.5)
    '1970-01-01T00:29:24.500Z [rank 3] step 1'
    """
    seconds = time.time() if now is None else now
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    who = "parctl" if rank is None else f"rank {rank}"
    return f"{stamp}.{int(seconds * 1000) % 1000:03d}Z [{who}] {text}"


def read_lines(lines: Iterable[str], *, rank: int | None, since: float | None) -> Iterator[LogLine]:
    """Yield the lines of `rank` (None: of everybody) that are younger than `since` (unix seconds).

    A line of Ray's own has the time of the line before it.
    """
    last = 0.0
    for line in lines:
        match = LINE.fullmatch(line)
        who, text = None, line
        if match is not None:
            last = timegm(time.strptime(match[1], "%Y-%m-%dT%H:%M:%S")) + int(match[2]) / 1000
            who, text = None if match[3] is None else int(match[3]), match[4]
        if (rank is None or who == rank) and (since is None or last >= since):
            yield LogLine(rank=who, text=text)


def tail_of_each(lines: Iterable[LogLine], tail: int) -> Iterator[LogLine]:
    """Keep the last `tail` lines of every rank, in their order."""
    kept: dict[int | None, deque[int]] = {}
    everything = list(lines)
    for position, line in enumerate(everything):
        kept.setdefault(line.rank, deque(maxlen=tail)).append(position)
    wanted = {position for positions in kept.values() for position in positions}
    yield from (line for position, line in enumerate(everything) if position in wanted)
