"""The job's log, written by the driver and read by a client."""

from parctl.launcher.backend import LogLine
from parctl.launcher.ray.job_log import log_line, read_lines, tail_of_each

LOG = [
    "Running entrypoint for job x",
    "2026-11-21T14:00:00.000Z [parctl] attempt 1 starts on a, b",
    "2026-11-21T14:00:01.250Z [rank 0] one",
    "2026-11-21T14:00:01.250Z [rank 11] [rank 3] quoted",
    "2026-11-21T14:00:02.000Z [rank 0] two",
    "2026-11-21T14:00:03.000Z [rank 0] ",
]
AT_TWO = 1795269602.0  # 2026-11-21T14:00:02Z


def texts(**wanted: object) -> list[tuple[int | None, str]]:
    rank, since = wanted.get("rank"), wanted.get("since")
    assert rank is None or isinstance(rank, int)
    assert since is None or isinstance(since, float)
    return [(line.rank, line.text) for line in read_lines(LOG, rank=rank, since=since)]


def test_what_is_written_is_read_back() -> None:
    line = log_line(7, "a [rank 2] b", now=AT_TWO + 0.5)
    assert line == "2026-11-21T14:00:02.500Z [rank 7] a [rank 2] b"
    assert list(read_lines([line], rank=None, since=None)) == [LogLine(rank=7, text="a [rank 2] b")]


def test_every_line_belongs_to_a_rank_or_to_nobody() -> None:
    assert texts() == [
        (None, "Running entrypoint for job x"),
        (None, "attempt 1 starts on a, b"),
        (0, "one"),
        (11, "[rank 3] quoted"),
        (0, "two"),
        (0, ""),
    ]


def test_one_rank_and_an_age() -> None:
    assert texts(rank=11) == [(11, "[rank 3] quoted")]
    assert texts(since=AT_TWO) == [(0, "two"), (0, "")]


def test_a_tail_counts_every_rank_by_itself() -> None:
    tail = list(tail_of_each(read_lines(LOG, rank=None, since=None), 1))
    assert [(line.rank, line.text) for line in tail] == [
        (None, "attempt 1 starts on a, b"),
        (11, "[rank 3] quoted"),
        (0, ""),
    ]
