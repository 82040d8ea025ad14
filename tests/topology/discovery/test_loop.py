"""The loop reads at its start, on change, on request and by the clock, and outlives the cluster."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

import pytest
from tests.topology.discovery.cluster import RECORD, Cluster
from tests.topology.discovery.nodes import ECC, reading
from tests.topology.discovery.test_publish import TARGET

from parctl.topology.discovery.loop import Pace, run
from parctl.topology.discovery.reading import Reading

SOON_S = 10.0


class Reader:
    """Counts readings; `reached(n)` waits for the nth."""

    def __init__(self, found: Reading | None = None) -> None:
        self.found = found or reading()
        self.count = 0
        self.more = Event()

    def __call__(self) -> Reading:
        self.count += 1
        self.more.set()
        return self.found

    def reached(self, count: int) -> bool:
        while self.count < count:
            self.more.clear()
            if self.count < count and not self.more.wait(SOON_S):
                return False
        return True


def looping(
    cluster: Cluster,
    read: Reader,
    root: Path,
    check: Callable[[Event], None],
    *,
    interval_s: float = 3600,
) -> None:
    """Run the loop in a thread while `check` looks; `check` gets the event that asks to read."""
    stop, wanted = Event(), Event()
    files = {name: root / name for name in ("alive", "published")}
    pace = Pace(interval_s=interval_s, poll_s=0.02, **files)
    options = {"stop": stop, "wanted": wanted, "read": read, "root": root}
    thread = Thread(target=run, args=(cluster, TARGET, pace), kwargs=options)
    thread.start()
    try:
        check(wanted)
    finally:
        stop.set()
        thread.join(SOON_S)
    assert not thread.is_alive()


def test_one_reading_is_enough_as_long_as_nothing_changes(tmp_path: Path) -> None:
    cluster, read, told = Cluster(), Reader(), Event()

    def check(wanted: Event) -> None:
        assert read.reached(1)
        told.wait(0.3)  # some fifteen polls

    looping(cluster, read, tmp_path, check)

    assert read.count == 1
    assert cluster.asked.count(f"PATCH {RECORD}") == 1
    assert (tmp_path / "alive").exists()


def test_a_device_that_appears_is_read_at_once(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    read = Reader()

    def check(wanted: Event) -> None:
        assert read.reached(1)
        (tmp_path / "dev/nvidia0").touch()
        assert read.reached(2)

    looping(Cluster(), read, tmp_path, check)


def test_a_reading_can_be_asked_for(tmp_path: Path) -> None:
    read = Reader()

    def check(wanted: Event) -> None:
        assert read.reached(1)
        wanted.set()
        assert read.reached(2)

    looping(Cluster(), read, tmp_path, check)


def test_the_clock_brings_the_next_reading(tmp_path: Path) -> None:
    read = Reader()

    looping(Cluster(), read, tmp_path, lambda wanted: _reached(read, 3), interval_s=0.05)


def _reached(read: Reader, count: int) -> None:
    assert read.reached(count)


def test_what_the_cluster_refused_is_told_at_the_next_poll(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster, read, told = Cluster(), Reader(), Event()
    cluster.refuse[f"PATCH {RECORD}"] = [503, 503]

    def check(wanted: Event) -> None:
        while RECORD not in cluster.objects:
            assert not told.wait(0.01)

    looping(cluster, read, tmp_path, check)

    assert read.count == 1  # telling again is not reading again
    assert capsys.readouterr().err.count("not published: the server answers 503") == 2


def test_the_file_of_what_was_told_is_there_once_the_cluster_took_a_reading(
    tmp_path: Path,
) -> None:
    cluster, told = Cluster(), Event()
    cluster.served = False

    def check(wanted: Event) -> None:
        while cluster.asked.count(f"PATCH {RECORD}") < 3:
            assert not told.wait(0.01)
        assert not (tmp_path / "published").exists()
        cluster.served = True
        while not (tmp_path / "published").exists():
            assert not told.wait(0.01)

    looping(cluster, Reader(), tmp_path, check)

    assert RECORD in cluster.objects


def test_a_node_without_a_gpu_is_told_as_well(tmp_path: Path) -> None:
    read, told = Reader(replace(reading(), node=None)), Event()

    def check(wanted: Event) -> None:
        while not (tmp_path / "published").exists():
            assert not told.wait(0.01)

    looping(Cluster(), read, tmp_path, check)


def test_an_event_that_was_refused_is_not_forgotten(tmp_path: Path) -> None:
    """The record is told by then, and its conditions look as if nothing were new."""
    cluster, told = Cluster(), Event()
    cluster.refuse["POST /api/v1/namespaces/default/events"] = [500, 500]

    def check(wanted: Event) -> None:
        while not cluster.events:
            assert not told.wait(0.01)

    looping(cluster, Reader(reading(None, ECC)), tmp_path, check)

    assert [event["reason"] for event in cluster.events] == ["Ecc"]


def test_a_record_that_was_deleted_is_back_after_the_next_reading(tmp_path: Path) -> None:
    cluster, read, told = Cluster(), Reader(), Event()

    def check(wanted: Event) -> None:
        for _ in range(2):
            while RECORD not in cluster.objects:
                assert not told.wait(0.01)
            told.wait(0.1)
            del cluster.objects[RECORD]
            wanted.set()
        while RECORD not in cluster.objects:
            assert not told.wait(0.01)

    looping(cluster, read, tmp_path, check)
