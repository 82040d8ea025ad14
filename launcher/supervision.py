"""One local run from its first attempt to its end: attempts, retries, verdict, state.

The idea: whoever runs this is the only one to write the run's state while it lives, so the state
needs no merging and no second opinion.
"""

import json
import os
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from parctl.launcher.attempt import Attempt, Outcome
from parctl.launcher.backend import RankStatus, State, Verdict
from parctl.launcher.children import Children
from parctl.launcher.guard import GRACE_S, declared_dead
from parctl.launcher.hang import hang_of
from parctl.launcher.processes import Process, kill_run, this_process
from parctl.launcher.ranks import CommandStarter, ForkStarter, Starter
from parctl.launcher.run_directory import Record, RunDirectory
from parctl.launcher.secrets import secret_values
from parctl.launcher.spawn import start_fork_server
from parctl.launcher.verdict import fix_for, plain_verdict, reach_verdict
from parctl.recipes.frozen import from_json
from parctl.topology.layout import Layout

LAST_WRITE_S = 60.0  # how long the end of a run waits for room on a full disk


class Supervisor:
    """One run from its first attempt to its end."""

    def __init__(
        self,
        *,
        run: RunDirectory,
        record: Record,
        children: Children,
        guard: int,
        starter: Starter | None,  # one that was started ahead
    ) -> None:
        self._run, self._record, self._children, self._guard = run, record, children, guard
        self._starter = starter
        self._manifest = _read_manifest(run.manifest)
        self._secrets = secret_values(self._manifest["secrets"], os.environ)
        self._environment = self._rank_environment()
        self._unwritten = False

    def supervise(self) -> None:
        timeout_s = self._manifest["timeout_s"]
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        for number in range(1, self._manifest["retries"] + 2):
            if self._starter is None or not self._starter.usable:
                self._starter = self._new_starter()
            self._say(f"attempt {number} starts")
            outcome = self._attempt(number, self._starter, deadline)
            verdict = None if outcome.succeeded or outcome.cancelled else self._verdict(outcome)
            if verdict is None:
                self._end(State.CANCELLED if outcome.cancelled else State.SUCCEEDED, None)
                break
            self._event("attempt failed", attempt=number, sentence=verdict.sentence)
            self._say(f"attempt {number}: {verdict.sentence}")
            late = deadline is not None and time.monotonic() >= deadline
            stopped = self._children.stops_asked > 0
            if number > self._manifest["retries"] or late or stopped or self._deleted:
                state = State.CANCELLED if stopped else State.FAILED
                self._end(state, verdict)
                break
            self._change(state=State.RESTARTING, restarts=number)
        if self._starter is not None:
            self._starter.close()

    def _attempt(self, number: int, starter: Starter, deadline: float | None) -> Outcome:
        self._change(state=State.PLACING, attempt=number, ranks=(), processes=())
        self._event("attempt started", attempt=number)
        spared = [self._guard]
        if isinstance(starter, ForkStarter):
            spared.append(starter.pid)
        attempt = Attempt(
            run=self._run,
            number=number,
            manifest=self._manifest,
            environment=self._environment,
            children=self._children,
            starter=starter,
            deadline=deadline,
            changed=self._ranks_changed,
            spared=spared,
        )
        return attempt.run()

    def _new_starter(self) -> Starter:
        if self._manifest["start"] == "command":
            return CommandStarter(self._manifest["command"], self._manifest["workdir"])
        server = start_fork_server(self._environment, str(self._run.forkserver_log))
        return ForkStarter(server, plan=self._run.plan, run_dir=self._run.path)

    def _rank_environment(self) -> dict[str, str]:
        return {
            **self._manifest["env_defaults"],
            **os.environ,
            **self._manifest["env"],
            **self._secrets,
            "PARCTL_RUN_DIR": str(self._run.path),
        }

    def _ranks_changed(
        self, ranks: Sequence[RankStatus], processes: Sequence[Process | None]
    ) -> None:
        state = State.RUNNING if all(processes) else State.PLACING
        self._change(state=state, ranks=tuple(ranks), processes=tuple(processes))

    def _verdict(self, outcome: Outcome) -> Verdict:
        if outcome.complaint is not None or not outcome.failures:
            complaint = outcome.complaint or "the attempt failed"
            return plain_verdict(complaint, cause=complaint, fix=fix_for(complaint))
        plan = json.loads(self._run.plan.read_text(encoding="utf-8"))
        layout = from_json(Layout, plan["layout"])
        return reach_verdict(
            layout,
            outcome.failures,
            silent=outcome.silent,
            hang=hang_of(outcome, layout, self._run.error_file(self._record.attempt, 0).parent),
            attempt_started=outcome.started_unix,
            oom_kills=outcome.oom_kills,
            redact=list(self._secrets.values()),
        )

    def _end(self, state: State, verdict: Verdict | None) -> None:
        self._event("ended", state=state)
        self._say(f"the run is {state}")
        self._change(state=state, ended_unix=time.time(), verdict=verdict)
        give_up = time.monotonic() + LAST_WRITE_S
        while self._unwritten and not self._deleted and time.monotonic() < give_up:
            time.sleep(1.0)
            self._change()

    @property
    def _deleted(self) -> bool:
        """Whether somebody removed the run directory, and with it the means to ask for an end."""
        return not self._run.state.exists()

    def _change(self, **changes: Any) -> None:
        """Change the record and write it; on a full disk the run goes on and writes later."""
        self._record = replace(self._record, **changes)
        try:
            self._run.write(self._record)
            self._unwritten = False
        except OSError as error:
            self._unwritten = True
            self._say(f"cannot write the state: {error}")

    def _event(self, event: str, **details: Any) -> None:
        try:
            self._run.append_event(event, details)
        except OSError as error:
            self._say(f"cannot write the events: {error}")

    def _say(self, text: str) -> None:
        with suppress(OSError):  # supervisor.log is on the full disk too
            print(time.strftime("%H:%M:%S"), text, flush=True)


def take_over(run: RunDirectory) -> Record | None:
    """Become the owner; None when the run was cancelled or declared dead in between."""
    with run.lock():
        record = run.read()
        if record.state.ended:
            return None
        record = replace(record, role="supervisor", owner=this_process(), state=State.PLACING)
        run.write(record)
        return record


def supervise(
    run: RunDirectory, record: Record, children: Children, guard: int, starter: Starter | None
) -> None:
    """See a run to its end; a fault of ours ends it too, with the traceback in the log."""
    try:
        Supervisor(
            run=run, record=record, children=children, guard=guard, starter=starter
        ).supervise()
    except Exception as error:
        traceback.print_exc()
        kill_run(run.run_id, run.path, grace_s=GRACE_S)
        verdict = plain_verdict(
            f"the supervisor failed: {type(error).__name__}: {error}",
            cause=f"{type(error).__name__}: {error}",
            fix=f"a fault of parctl: report it with the traceback in {run.supervisor_log.name}",
        )
        run.write(replace(declared_dead(run.read()), verdict=verdict))


def _read_manifest(path: Path) -> Mapping[str, Any]:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    manifest: Mapping[str, Any] = yaml.load(path.read_text(encoding="utf-8"), loader)
    return manifest
