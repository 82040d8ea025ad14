"""What the objects of a run mean, on objects that a real cluster made."""

import json
from dataclasses import replace

import pytest
from tests.launcher.kubernetes.test_why import facts

from parctl.launcher.backend import RankStatus, State, Verdict
from parctl.launcher.kubernetes.report import (
    MESSAGE_BYTES,
    first_report,
    last_report,
    last_words,
    metrics_rows,
    read_report,
    report_line,
)
from parctl.launcher.kubernetes.state import status_of, workload_status


@pytest.mark.parametrize(
    ("situation", "state"),
    [
        ("going-on", State.RUNNING),
        ("succeeded", State.SUCCEEDED),
        ("cancelled", State.CANCELLED),
        ("rank-failed", State.FAILED),
        ("took-too-long", State.FAILED),
        ("taint", State.PENDING),
        ("no-secret", State.PLACING),
        ("quota-exceeded", State.PENDING),
        ("queue-full", State.PENDING),
        ("queue-stopped", State.PENDING),
        ("suspended-by-hand", State.PENDING),
    ],
)
def test_the_state_of_a_run_is_that_of_its_objects(situation: str, state: State) -> None:
    known = facts(situation)
    assert status_of(known.run, known.report, server="https://x").state is state


def test_a_failed_run_tells_its_verdict_from_the_last_words_of_its_pods() -> None:
    known = facts("rank-failed")
    status = status_of(known.run, None, server="https://x")
    assert status.verdict is not None
    assert (status.verdict.rank, status.verdict.node) == (1, "gpu-1")
    assert status.ended_unix is not None and status.ended_unix >= status.created_unix


def test_a_list_of_workloads_is_enough_for_the_state() -> None:
    for situation, state in (("succeeded", State.SUCCEEDED), ("going-on", State.RUNNING)):
        workload = facts(situation).run.workload
        assert workload_status(workload, None, server="https://x").state is state


def test_the_annotation_of_a_coordinator_is_a_report_too() -> None:
    known = facts("going-on")
    report = replace(first_report(), state=State.RESTARTING, restarts=2, step=7, attempt=3)
    annotations = known.run.workload["metadata"]["annotations"]
    annotations["parctl.dev/state"] = report_line(report).removeprefix("[parctl] report ")
    status = workload_status(known.run.workload, None, server="https://x")
    assert (status.state, status.restarts, status.step) == (State.RESTARTING, 2, 7)


def test_a_report_is_found_among_the_lines_of_a_log() -> None:
    first = replace(first_report(), attempt=1, updated_unix=1.0)
    second = replace(first_report(), attempt=2, updated_unix=2.0)
    lines = [report_line(first), "[rank 0] [parctl] report {}", report_line(second), "[parctl] say"]
    found = last_report(lines)
    assert found == second
    assert metrics_rows(['[parctl] metrics {"step": 1}', "[rank 0] x"]) == '{"step": 1}'
    assert read_report("no json") is None


def test_last_words_are_cut_to_what_a_container_may_leave() -> None:
    verdict = Verdict(
        sentence="rank 1 failed",
        rank=1,
        node="gpu-1",
        coordinates={"dp": 1},
        groups={"dp": tuple(range(500))},
        cause="x" * 300,
        victims=tuple(range(3000)),
        last_lines=tuple("y" * 300 for _ in range(20)),
        fix=None,
    )
    ranks = tuple(
        RankStatus(rank=i, node="gpu-1", local_rank=i, pid=1, state="running") for i in range(3000)
    )
    report = replace(
        first_report(), state=State.FAILED, attempt=4, ranks=ranks, verdict=verdict, restarts=3
    )
    text = last_words(report)
    assert len(text.encode()) <= MESSAGE_BYTES
    kept = read_report(text)
    assert kept is not None and kept.verdict is not None
    assert (kept.attempt, kept.restarts, kept.state) == (4, 3, State.FAILED)
    assert kept.verdict.sentence == "rank 1 failed" and kept.verdict.victims[:3] == (0, 1, 2)
    assert json.loads(last_words(first_report()))["attempt"] == 0
