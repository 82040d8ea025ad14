"""A rank that does not arrive is named, with the group that waited for it, soon after the time-out.

Within `comm_timeout_s` + 5 s of the moment when it stops, as `parctl why` tells it.
"""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tests.launcher.runs import BACKEND, directory, launch, left, until
from tests.runtime.plans import LLAMA, plan

from parctl.launcher.backend import RankStatus, State
from parctl.launcher.flight_records import FlightRecord, Group
from parctl.launcher.hang import find_hang
from parctl.launcher.waiting import wait_for
from parctl.planner.plan import Plan

TIMEOUT_S = 3.0
SLEEPER = """
import signal, time

def sleep_for_ever(number, frame):
    time.sleep(1e6)

signal.signal(signal.SIGUSR2, sleep_for_ever)
"""


def endless(tmp_path: Path, axes: dict[str, int]) -> Plan:
    """Training without end, in which SIGUSR2 makes a rank sleep."""
    text = tmp_path / "text.txt"
    text.write_text("All work and no play makes a dull rank.\n" * 200)
    (tmp_path / "sitecustomize.py").write_text(SLEEPER)
    made = plan(text, axes, train={"steps": 1_000_000, "comm_timeout_s": TIMEOUT_S})
    launch_spec = replace(made.recipe.launch, env={"PYTHONPATH": str(tmp_path)})
    topology = {**made.topology, "kind": "cpu"}
    return replace(made, recipe=replace(made.recipe, launch=launch_spec), topology=topology)


def hang(made: Plan, rank: int, number: int) -> tuple[float, list[RankStatus]]:
    """Send a signal to one rank in the middle of training. Returns seconds until the verdict."""
    launch(made)
    until(lambda: (BACKEND.status("probe-1").step or 0) >= 3, seconds=60)
    ranks = list(BACKEND.status("probe-1").ranks)
    os.kill(ranks[rank].pid or 0, number)
    began = time.monotonic()
    assert wait_for(BACKEND, "probe-1", timeout_s=60).state is State.FAILED
    return time.monotonic() - began, ranks


def test_a_halted_rank_is_named_with_the_group_that_waited(tmp_path: Path) -> None:
    seconds, _ = hang(endless(tmp_path, {"fsdp": 2, "tp": 2}), 3, signal.SIGSTOP)
    verdict = BACKEND.status("probe-1").verdict
    assert verdict is not None
    assert (verdict.rank, verdict.coordinates) == (3, {"fsdp": 1, "tp": 1})
    assert verdict.victims == (0, 1, 2)
    assert "did not arrive: rank" in verdict.sentence
    assert " waited for it in all" in verdict.sentence  # an all-reduce or an all-gather
    assert "it is stopped (SIGSTOP)" in verdict.sentence
    assert BACKEND.why("probe-1").sentence == verdict.sentence
    assert seconds < TIMEOUT_S + 5
    until(lambda: not left())


def test_a_rank_that_sleeps_for_ever_is_named_with_its_stack(tmp_path: Path) -> None:
    seconds, _ = hang(endless(tmp_path, {"dp": 2}), 1, signal.SIGUSR2)
    verdict = BACKEND.status("probe-1").verdict
    assert verdict is not None
    assert verdict.rank == 1
    assert f"it is in {tmp_path}/sitecustomize.py:5 in sleep_for_ever" in verdict.sentence
    assert verdict.last_lines[0] == f"{tmp_path}/sitecustomize.py:5 in sleep_for_ever"
    assert seconds < TIMEOUT_S + 5
    assert (directory().path / "errors" / "attempt-1" / "flight-0.json").exists()


def record(*groups: Group, stack: str = "/torch/distributed/x.py:1 in wait") -> FlightRecord:
    return FlightRecord(stack=(stack,), groups=groups)


def group(axis: str, ranks: tuple[int, ...], count: int) -> Group:
    return Group(axis=axis, ranks=ranks, count=count, last="all_reduce")


def test_who_waits_itself_is_not_to_blame() -> None:
    """Rank 0 waits for 1 in dp, 1 for 3 in tp; 1 and 3 were still there when the attempt ended."""
    layout = plan("text", {"dp": 2, "tp": 2}).layout
    found = find_hang(
        layout,
        silent=[2, 3],
        halted=[],
        failed=[0, 1],
        records={
            0: record(group("tp", (0, 1), 7), group("dp", (0, 2), 5)),
            1: record(group("tp", (0, 1), 7), group("dp", (1, 3), 5)),
            2: record(group("dp", (0, 2), 4), group("tp", (2, 3), 7)),
            3: record(
                group("dp", (1, 3), 4), group("tp", (2, 3), 6), stack="/job/documents.py:9 in read"
            ),
        },
    )
    assert found is not None
    assert (found.rank, found.axis, found.ranks) == (3, "dp", (1, 3))
    assert (found.waiting, found.operation) == ((1,), "all_reduce")
    assert found.doing == "it is in /job/documents.py:9 in read"


def test_of_ranks_inside_the_step_the_one_behind_is_to_blame() -> None:
    layout = plan("text", {"dp": 3}).layout
    ahead, behind = record(group("dp", (0, 1, 2), 9)), record(group("dp", (0, 1, 2), 8))
    records = {0: ahead, 1: ahead, 2: behind}
    found = find_hang(layout, silent=[1, 2], halted=[], failed=[0], records=records)
    assert found is not None
    assert (found.rank, found.waiting) == (2, (0,))


def test_without_records_of_the_failed_the_smallest_group_is_named() -> None:
    """Sends between pipeline stages are in no record."""
    layout = plan("text", {"pp": 2, "dp": 4}, model=LLAMA).layout
    found = find_hang(layout, silent=[5], halted=[], failed=[1], records={})
    assert found is not None
    assert (found.axis, found.ranks, found.doing) == ("pp", (1, 5), "it does not answer")


@pytest.mark.parametrize("silent", [[], [1]])
def test_nobody_is_blamed_where_all_wait(silent: list[int]) -> None:
    layout = plan("text", {"dp": 2}).layout
    waiting = record(group("dp", (0, 1), 3))
    assert (
        find_hang(layout, silent=silent, halted=[], failed=[0], records={0: waiting, 1: waiting})
        is None
    )
