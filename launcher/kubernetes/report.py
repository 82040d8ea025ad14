"""How a run is doing, as its leader tells it and any client reads it from the cluster.

Pods have no right to write anything into the cluster, and need none: what the leader says is a line
of its container's log, and at the end the container's termination message, which stays in the Pod
object. A coordinator has the right, and writes the same text into an annotation of the workload, so
that one request for all runs shows all of it.

The log of the leader's pod holds also what its ranks print. Therefore the last report is repeated
after REPEAT_LINES lines: the end of the log always has one.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from parctl.launcher.backend import RankStatus, State, Verdict
from parctl.recipes.frozen import from_json, to_json

MARK = "[parctl] "
REPORT, METRICS, SAY = "report ", "metrics ", "say "
REPEAT_LINES = 200
MESSAGE_BYTES = 4096  # what a container may leave as its last words


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    state: State
    attempt: int  # counts from 1; 0 until the first has begun
    restarts: int  # that were counted
    step: int | None
    ranks: tuple[RankStatus, ...]
    verdict: Verdict | None
    reason: str | None  # why it waits, in a sentence
    history: tuple[str, ...]  # of earlier attempts, in sentences
    updated_unix: float


def first_report() -> Report:
    return Report(
        state=State.PLACING,
        attempt=0,
        restarts=0,
        step=None,
        ranks=(),
        verdict=None,
        reason=None,
        history=(),
        updated_unix=0.0,
    )


def report_text(report: Report) -> str:
    return json.dumps(to_json(report), separators=(",", ":"))


def read_report(text: str) -> Report | None:
    """Read a report back; None for anything else."""
    try:
        report = from_json(Report, json.loads(text))
        return replace(report, state=State(report.state))
    except (KeyError, TypeError, ValueError):
        return None


def report_line(report: Report) -> str:
    return f"{MARK}{REPORT}{report_text(report)}"


def last_report(lines: Iterable[str]) -> Report | None:
    """Return the last one among the lines of a log."""
    found = None
    for line in lines:
        if line.startswith(MARK + REPORT):
            found = read_report(line[len(MARK + REPORT) :]) or found
    return found


def metrics_rows(lines: Iterable[str]) -> str:
    """Return the lines of `metrics.jsonl` that are in a log."""
    mark = MARK + METRICS
    return "\n".join(line[len(mark) :] for line in lines if line.startswith(mark))


def last_words(report: Report) -> str:
    """Cut a report to what a termination message may hold: ranks first, then the oldest lines."""
    text = report_text(report)
    if len(text.encode()) <= MESSAGE_BYTES:
        return text
    report = replace(report, ranks=(), history=report.history[-2:])
    verdict = report.verdict
    while len(report_text(report).encode()) > MESSAGE_BYTES and verdict is not None:
        if verdict.last_lines:
            verdict = replace(verdict, last_lines=verdict.last_lines[1:])
        elif verdict.groups or verdict.victims:
            verdict = replace(verdict, groups={}, victims=verdict.victims[:16])
            if len(report_text(replace(report, verdict=verdict)).encode()) > MESSAGE_BYTES:
                verdict = replace(verdict, victims=())
        else:
            verdict = replace(verdict, sentence=verdict.sentence[:1000], cause=verdict.cause[:500])
            report = replace(report, verdict=verdict, history=())
            break
        report = replace(report, verdict=verdict)
    return report_text(report)


def read_words(message: Mapping[str, Any] | str | None) -> Report | None:
    return read_report(message) if isinstance(message, str) else None
