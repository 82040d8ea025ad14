"""Why a local run waits, goes on or failed: a sentence, what would help, and the evidence."""

import json
import time
from collections.abc import Iterator

from parctl.launcher.backend import Diagnosis, RunStatus, State
from parctl.launcher.log_files import last_lines
from parctl.launcher.metrics import last_step
from parctl.launcher.run_directory import RunDirectory
from parctl.launcher.verdict import fix_for

SILENT_S = 120.0  # a running rank that writes nothing for so long is worth a look


def diagnose(run: RunDirectory, status: RunStatus) -> Diagnosis:
    """Say what is the matter with a run."""
    if status.state is State.FAILED and status.verdict is not None:
        verdict = status.verdict
        return Diagnosis(
            sentence=verdict.sentence,
            fix=verdict.fix,
            # the last attempt is the verdict itself
            evidence=(*verdict.last_lines, *list(_history(run))[:-1]),
        )
    if status.state.ended:
        return Diagnosis(
            sentence=f"the run is {status.state}", fix=None, evidence=tuple(_history(run))
        )
    if status.state is State.RUNNING:
        return _running(run, status)
    lines = last_lines(run.forkserver_log, 3)
    return Diagnosis(
        sentence=f"the run is {status.state}: {_placing(status)}",
        fix=fix_for("\n".join(lines)),
        evidence=(*lines, *_history(run)),
    )


def _running(run: RunDirectory, status: RunStatus) -> Diagnosis:
    attempt = run.read().attempt
    ages = {}
    for rank in status.ranks:
        path = run.log(attempt, rank.rank)
        if path.exists():
            ages[rank.rank] = time.time() - path.stat().st_mtime
    step = last_step(run.metrics)
    done = (
        "" if step is None else f", step {step}" + (f" of {status.steps}" if status.steps else "")
    )
    ended = [rank.rank for rank in status.ranks if rank.state != "running"]
    waiting = f"; ranks that have ended: {', '.join(map(str, ended))}" if ended else ""
    evidence = [f"rank {rank} wrote its last line {age:.0f} s ago" for rank, age in ages.items()]
    newest = min(ages.values(), default=0.0)
    if run.metrics.exists():
        newest = min(newest, time.time() - run.metrics.stat().st_mtime)
    if newest > SILENT_S:
        oldest = max(ages, key=lambda rank: ages[rank])
        return Diagnosis(
            sentence=f"the run is alive but silent for {newest:.0f} s{done}{waiting}",
            fix=f"rank {oldest} is silent for longest: `py-spy dump --pid PID` shows where it is",
            evidence=(*evidence, *_history(run)),
        )
    return Diagnosis(
        sentence=f"the run is going on{done}{waiting}",
        fix=None,
        evidence=(*evidence, *_history(run)),
    )


def _placing(status: RunStatus) -> str:
    started = sum(rank.state != "starting" for rank in status.ranks)
    if not status.ranks:
        return "its ranks are being started (importing torch takes seconds)"
    return f"{started} of {len(status.ranks)} ranks have started"


def _history(run: RunDirectory) -> Iterator[str]:
    """Yield what happened in earlier attempts."""
    try:
        text = run.events.read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    for line in text.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if event["event"] == "attempt failed":
            yield f"attempt {event['attempt']}: {event['sentence']}"
