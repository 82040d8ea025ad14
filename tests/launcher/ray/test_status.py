"""The state of a run from Ray's word and its driver's."""

import json
from dataclasses import replace

import pytest

from parctl.launcher.backend import RankStatus, State
from parctl.launcher.ray.diagnosis import diagnose
from parctl.launcher.ray.jobs import Job
from parctl.launcher.ray.record import (
    KEY,
    Details,
    Record,
    details_text,
    read_details,
    read_record,
    record_text,
)
from parctl.launcher.ray.status import status_of
from parctl.launcher.verdict import plain_verdict

JOB = Job(
    job_id="tiny-1",
    status="RUNNING",
    message="Job is currently running.",
    metadata={"name": "tiny", "parctl_plan": "sha256:1", "parctl_steps": "60"},
    created_unix=100.0,
    ended_unix=None,
    driver_node="head",
    driver_exit=None,
)
RECORD = Record(
    state=State.RUNNING,
    attempt=2,
    restarts=1,
    step=7,
    ended_unix=None,
    verdict=None,
    reason=None,
    fix=None,
    updated_unix=120.0,
)
RANK = RankStatus(rank=0, node="a", local_rank=0, pid=7, state="running")
DETAILS = Details(ranks=(RANK,), nodes={"a": "id"}, history=("attempt 1: rank 0 failed",))


def with_record(job: Job, record: Record) -> Job:
    return replace(job, metadata={**job.metadata, KEY: record_text(record)})


def state(job: Job) -> State:
    return status_of(job, None, where="").state


def test_a_record_is_read_as_it_was_written() -> None:
    failed = replace(RECORD, verdict=plain_verdict("why", cause="c", fix=None))
    assert read_record({KEY: record_text(failed)}) == failed
    assert read_details(json.loads(details_text(DETAILS))) == DETAILS


@pytest.mark.parametrize("text", ["", "{}", '{"schema": 2}', "[]", "null"])
def test_what_another_version_wrote_is_no_record(text: str) -> None:
    assert read_record({KEY: text}) is None


def test_a_running_job_is_what_its_driver_says() -> None:
    status = status_of(with_record(JOB, RECORD), DETAILS, where="here")

    assert (status.state, status.step, status.steps, status.restarts) == (State.RUNNING, 7, 60, 1)
    assert (status.name, status.plan_hash, status.backend) == ("tiny", "sha256:1", "ray")
    assert status.ranks == (RANK,)
    assert status.ended_unix is None


def test_before_the_drivers_first_word_it_is_pending() -> None:
    assert state(replace(JOB, status="PENDING")) is State.PENDING
    assert state(JOB) is State.PENDING


@pytest.mark.parametrize(
    ("word", "expected"),
    [("SUCCEEDED", State.SUCCEEDED), ("STOPPED", State.CANCELLED), ("FAILED", State.FAILED)],
)
def test_without_a_last_word_rays_own_counts(word: str, expected: State) -> None:
    assert state(replace(with_record(JOB, RECORD), status=word)) is expected


def test_the_drivers_last_word_is_not_taken_back() -> None:
    over = replace(RECORD, state=State.SUCCEEDED, ended_unix=130.0)
    status = status_of(replace(with_record(JOB, over), status="STOPPED"), None, where="")

    assert (status.state, status.ended_unix) == (State.SUCCEEDED, 130.0)


def test_a_driver_that_was_killed_said_nothing() -> None:
    dead = replace(with_record(JOB, RECORD), status="FAILED", driver_exit=-9, ended_unix=140.0)
    status = status_of(dead, DETAILS, where="")

    assert status.verdict is not None
    assert status.verdict.sentence == "the driver was killed while the run was Running"
    assert [rank.state for rank in status.ranks] == ["lost"]
    assert status.ended_unix == 140.0


def test_a_driver_whose_node_is_gone_is_lost_whatever_the_table_says() -> None:
    going_on = with_record(JOB, RECORD)
    status = status_of(going_on, DETAILS, where="", driver_lost=True)

    assert status.state is State.FAILED
    assert status.verdict is not None
    assert status.verdict.sentence == "the driver was lost with its node while the run was Running"
    assert [rank.state for rank in status.ranks] == ["lost"]
    over = with_record(JOB, replace(RECORD, state=State.SUCCEEDED, ended_unix=130.0))
    assert status_of(over, None, where="", driver_lost=True).state is State.SUCCEEDED


def test_a_driver_that_could_not_start_says_why() -> None:
    message = "failed with exit code 1, last logs:\n/usr/bin/python3: No module named ray"
    failed = replace(JOB, status="FAILED", driver_exit=1, message=message)
    verdict = status_of(failed, None, where="").verdict

    assert verdict is not None
    assert verdict.sentence == (
        "the driver failed before it said anything: /usr/bin/python3: No module named ray"
    )
    assert verdict.fix == "install `ray` in the environment that the ranks run in"


def test_why_gives_the_reason_of_a_waiting_run() -> None:
    waiting = replace(RECORD, state=State.PENDING, reason="n1 is taken", fix="wait")
    job = with_record(JOB, waiting)
    diagnosis = diagnose(job, status_of(job, DETAILS, where=""), DETAILS)

    assert (diagnosis.sentence, diagnosis.fix) == ("n1 is taken", "wait")
    assert diagnosis.evidence == ("attempt 1: rank 0 failed",)


def test_why_of_a_running_run_counts_its_ranks() -> None:
    job = with_record(JOB, RECORD)
    diagnosis = diagnose(job, status_of(job, DETAILS, where=""), DETAILS)

    assert diagnosis.sentence == "the run is going on, step 7 of 60; ranks: 1 running"


def test_why_before_the_driver_gives_rays_word() -> None:
    job = replace(JOB, status="PENDING", message="Job has not started yet.")
    diagnosis = diagnose(job, status_of(job, None, where=""), None)

    assert diagnosis.sentence == ("Ray has not started the driver yet: Job has not started yet.")
