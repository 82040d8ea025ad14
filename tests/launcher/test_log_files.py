"""Logs of several ranks: merged by arrival, cut by time and number, followed over restarts."""

import json
import threading
import time
from pathlib import Path

from parctl.launcher.log_files import Arrivals, follow_logs, last_lines, read_logs
from parctl.launcher.run_directory import RunDirectory


def written(path: Path, attempts: dict[int, dict[int, str]]) -> RunDirectory:
    """A run directory with these texts by attempt and rank."""
    run = RunDirectory(path)
    for attempt, texts in attempts.items():
        run.logs(attempt).mkdir(parents=True)
        for rank, text in texts.items():
            run.log(attempt, rank).write_text(text)
    return run


def read(run: RunDirectory, **options: float | int | None) -> list[tuple[int | None, str]]:
    chosen = {"rank": None, "since": None, "tail": None, **options}
    return [(line.rank, line.text) for line in read_logs(run, **chosen)]  # type: ignore[arg-type]


def test_lines_are_merged_by_the_time_of_arrival(tmp_path: Path) -> None:
    run = written(tmp_path, {1: {0: "a0\nb0\n", 1: "a1\nb1\n"}})
    marks = [[10.0, {"1": 3}], [11.0, {"0": 3}], [12.0, {"0": 6}], [13.0, {"1": 6}]]
    (run.logs(1) / "arrivals.jsonl").write_text("".join(json.dumps(m) + "\n" for m in marks))

    assert read(run) == [(1, "a1"), (0, "a0"), (0, "b0"), (1, "b1")]
    assert read(run, since=12.0) == [(0, "b0"), (1, "b1")]
    assert read(run, tail=1) == [(0, "b0"), (1, "b1")]
    assert read(run, tail=0) == []
    assert read(run, rank=1) == [(1, "a1"), (1, "b1")]


def test_a_torn_line_of_arrivals_is_passed_over(tmp_path: Path) -> None:
    run = written(tmp_path, {1: {0: "a\n"}})
    (run.logs(1) / "arrivals.jsonl").write_text('[10.0,{"0":2}]\n[11.0,{"0"')

    assert read(run, since=10.0) == [(0, "a")]
    assert read(run, since=10.5) == []


def test_arrivals_are_noted_only_when_something_arrived(tmp_path: Path) -> None:
    run = written(tmp_path, {1: {0: "", 1: ""}})
    arrivals = Arrivals(run, 1, 2)
    arrivals.note()
    run.log(1, 1).write_text("hello\n")
    arrivals.note()
    arrivals.note()

    lines = (run.logs(1) / "arrivals.jsonl").read_text().splitlines()
    assert [json.loads(line)[1] for line in lines] == [{"1": 6}]


def test_bytes_that_are_no_text_and_a_last_line_without_end_are_shown(tmp_path: Path) -> None:
    run = written(tmp_path, {1: {0: ""}})
    run.log(1, 0).write_bytes(b"ok \xff\r\nno end")

    assert read(run) == [(0, "ok \ufffd"), (0, "no end")]


def test_attempts_follow_each_other_and_tail_shows_the_newest(tmp_path: Path) -> None:
    run = written(tmp_path, {2: {0: "second\n"}, 10: {0: "tenth\n"}, 1: {0: "first\n"}})

    assert read(run) == [(0, "first"), (0, "second"), (0, "tenth")]
    assert read(run, tail=5) == [(0, "tenth")]


def test_following_misses_and_doubles_nothing(tmp_path: Path) -> None:
    run = written(tmp_path, {1: {0: "early\nhalf"}})
    done = threading.Event()

    def write() -> None:
        with run.log(1, 0).open("a") as file:
            for number in range(50):
                file.write(f" line {number}\nhalf")
                file.flush()
                time.sleep(0.005)
        run.logs(2).mkdir()
        run.log(2, 0).write_text("again\nnever ended")
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    lines = follow_logs(run, rank=None, since=None, tail=None, ended=done.is_set)
    texts = [line.text for line in lines]
    writer.join()

    assert texts == [
        "early",
        *(f"half line {number}" for number in range(50)),
        "again",
        "half",
        "never ended",
    ]


def test_the_end_of_a_large_log_is_read_without_the_rest(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("x" * 300_000 + "\nlast but one\n\n  \nlast\n")

    assert last_lines(log, 2) == ["last but one", "last"]
    assert last_lines(tmp_path / "none", 2) == []
