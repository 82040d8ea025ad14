"""The files of a local run: the one place that says where everything is.

::

    $XDG_STATE_HOME/parctl/runs/RUN_ID/
        plan.json         what runs, as `parctl plan -o json` prints it
        manifest.yaml     how it is started, as `parctl launch --dry-run -o yaml` prints it
        state.json        the record below; replaced whole, so that nobody reads half of it
        cancel.json       how long the ranks may save, where `parctl cancel --grace` says so
        leaving           on a node of Ray that is told to end, while its ranks save
        events.jsonl      what happened, one JSON object per line
        supervisor.log    the same for people
        logs/             forkserver.log; attempt-1/rank-0.log, ..., arrivals.jsonl (see log_files)
        errors/           attempt-1/rank-0.json, ...: exceptions as the ranks reported them
        metrics.jsonl     written by the runtime
        checkpoints/      unless the recipe says another place

The state is a value with one writer at a time: the launcher until the supervisor has taken the run
over, then the supervisor, and after its death whoever holds `lock`.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from parctl.errors import BackendError
from parctl.launcher.backend import RankStatus, State, Verdict
from parctl.launcher.places import runs_root
from parctl.launcher.processes import Machine, Process
from parctl.recipes.frozen import from_json, to_json

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Everything that changes while a run lives."""

    run_id: str
    name: str
    state: State
    plan_hash: str
    created_unix: float
    ended_unix: float | None
    attempt: int  # counts from 1; 0 until the first has begun
    restarts: int
    steps: int | None  # how many the recipe asks for
    role: Literal["launcher", "supervisor"]  # what `owner` is
    owner: Process  # alive as long as the run is looked after
    machine: Machine
    verdict: Verdict | None
    ranks: tuple[RankStatus, ...]
    processes: tuple[Process | None, ...]  # by rank; None: not started


@dataclass(frozen=True, slots=True)
class RunDirectory:
    path: Path

    @property
    def run_id(self) -> str:
        return self.path.name

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.yaml"

    @property
    def state(self) -> Path:
        return self.path / "state.json"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def cancel(self) -> Path:
        return self.path / "cancel.json"

    @property
    def leaving(self) -> Path:
        return self.path / "leaving"

    @property
    def supervisor_log(self) -> Path:
        return self.path / "supervisor.log"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def forkserver_log(self) -> Path:
        return self.path / "logs" / "forkserver.log"

    def logs(self, attempt: int) -> Path:
        return self.path / "logs" / f"attempt-{attempt}"

    def log(self, attempt: int, rank: int) -> Path:
        return self.logs(attempt) / f"rank-{rank}.log"

    def error_file(self, attempt: int, rank: int) -> Path:
        return self.path / "errors" / f"attempt-{attempt}" / f"rank-{rank}.json"

    def read(self) -> Record:
        """Read the state. FileNotFoundError: the run was deleted; BackendError: it is not ours."""
        text = self.state.read_text(encoding="utf-8", errors="replace")
        try:
            data = json.loads(text)
            if data.pop("schema") == SCHEMA:
                record = from_json(Record, data)
                return replace(record, state=State(record.state))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BackendError(
                f"`{self.state}` is damaged: {type(error).__name__}: {error}",
                hint=f"remove the directory `{self.path}`",
            ) from error
        raise BackendError(
            f"`{self.state}` was written by another version of parctl",
            hint="look at the run with that version, or remove its directory",
        )

    def write(self, record: Record) -> None:
        write_whole(self.state, json.dumps({"schema": SCHEMA, **to_json(record)}, indent=1))

    def append_event(self, event: str, details: Mapping[str, Any]) -> None:
        line = json.dumps({"time_unix": round(time.time(), 3), "event": event, **details})
        with self.events.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    @contextmanager
    def lock(self, *, wait: bool = True) -> Iterator[None]:
        """Hold the right to take the run over or declare its owner dead; death frees it.

        Raises BlockingIOError when another holds it and `wait` is false.
        """
        handle = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        finally:
            os.close(handle)


def write_whole(path: Path, text: str) -> None:
    """Replace a file at once; the old one stays when there is no room for the new."""
    beside = path.with_name(f".{path.stem}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def run_directories() -> list[RunDirectory]:
    """Every run, in no order."""
    try:
        entries = list(runs_root().iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    runs = [RunDirectory(entry) for entry in entries if not entry.name.startswith(".")]
    return [run for run in runs if run.state.exists()]
