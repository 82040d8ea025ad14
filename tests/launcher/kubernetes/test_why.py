"""The first sentence of `parctl why` names the true cause, on objects that a real cluster made.

`situations/*.json` were written by `record.py`; `situations.py` says how each of them came about.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.launcher.kubernetes.situations import SITUATIONS

from parctl.launcher.backend import State
from parctl.launcher.kubernetes.facts import Facts, own_events
from parctl.launcher.kubernetes.objects import RunObjects
from parctl.launcher.kubernetes.report import first_report, read_report
from parctl.launcher.kubernetes.why import diagnose
from parctl.launcher.verdict import plain_verdict

FOLDER = Path(__file__).parent / "situations"


def facts(name: str) -> Facts:
    data: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    run = data.pop("run")
    report = data.pop("report")
    return Facts(
        run=RunObjects(workload=run["workload"], pods=run["pods"]),
        report=read_report(json.dumps(report)) if report else None,
        **data,
    )


@pytest.mark.parametrize("name", SITUATIONS)
def test_the_first_sentence_is_the_true_cause(name: str) -> None:
    diagnosis = diagnose(facts(name))
    assert SITUATIONS[name].sentence in diagnosis.sentence


def test_every_situation_that_can_be_mended_says_how() -> None:
    fine = {"going-on", "succeeded", "cancelled", "rank-failed", "out-of-memory"}
    without = [name for name in SITUATIONS if not diagnose(facts(name)).fix]
    assert set(without) <= fine


def test_what_was_looked_at_is_said_last() -> None:
    evidence = diagnose(facts("taint")).evidence
    assert evidence[-1].startswith("looked at: Job, 2 pods, ")
    assert evidence[0].startswith("event FailedScheduling of Pod why-taint-")


def test_a_sentence_never_holds_a_python_value() -> None:
    for name in SITUATIONS:
        sentence = diagnose(facts(name)).sentence
        assert "None" not in sentence.replace("stopPolicy None", "") and "{" not in sentence


def test_what_may_not_be_read_is_said() -> None:
    known = facts("no-gpu-node")
    blind = replace(known, nodes=None, unread=["nodes: Kubernetes answers 403 Forbidden: no"])
    diagnosis = diagnose(blind)
    assert "not read: nodes: Kubernetes answers 403 Forbidden: no" in diagnosis.evidence
    assert "amd.com/gpu" in diagnosis.sentence


def test_a_run_that_starts_again_says_why_it_had_to() -> None:
    known = facts("going-on")
    ended = [{**pod, "status": {"phase": "Failed"}} for pod in known.run.pods]
    verdict = plain_verdict("rank 3 was killed by SIGKILL", cause="signal SIGKILL", fix=None)
    again = replace(first_report(), state=State.RESTARTING, verdict=verdict)

    diagnosis = diagnose(replace(known, run=replace(known.run, pods=ended), report=again))

    assert diagnosis.sentence == "the run starts again, since rank 3 was killed by SIGKILL"


def test_a_run_that_gave_up_waiting_for_pods_says_what_they_waited_for() -> None:
    """The pods that waited are gone with their Job; what was said of them is still there."""
    known = facts("no-gpu-node")
    since = known.run.workload["metadata"]["creationTimestamp"]
    absent = {"kind": "Pod", "name": f"{known.run_id}-1-abcde", "uid": "gone"}
    event = {"reason": "FailedScheduling", "message": "0/4 nodes: 1 Insufficient x.com/gpu"}
    heard = {**event, "involvedObject": absent, "metadata": {"creationTimestamp": since}}
    other = {**heard, "involvedObject": {**absent, "name": f"{known.run_id}-b-1-abcde"}}
    failed = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}
    workload = {**known.run.workload, "status": {"conditions": [failed]}}
    run = replace(known.run, workload=workload, pods=[])
    why = "1 of 2 pods are up for 60 s"
    verdict = plain_verdict(why, cause=why, fix="`parctl why` says what they wait for")
    report = replace(first_report(), state=State.FAILED, verdict=verdict)
    events = own_events([heard, other], run, [], None)

    diagnosis = diagnose(replace(known, run=run, report=report, events=events))

    assert events == [heard]
    assert diagnosis.sentence == f"{why}; the scheduler said last: {event['message']}"
    assert diagnosis.fix and "gather_timeout_s" in diagnosis.fix
