"""Short runs, one after the other, on ranks that are forked from one process.

Every trial is an attempt as any local run makes it: the same fork server, environment, ranks and
verdict. Only the run directory is used again, so that torch is imported once for all of them.
"""

import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from parctl.errors import ParctlError, RunCancelledError, RunFailedError
from parctl.launcher.attempt import Attempt, Outcome
from parctl.launcher.backend import Verdict
from parctl.launcher.children import Children
from parctl.launcher.early import ENVIRONMENT_DEFAULTS
from parctl.launcher.local_manifest import local_document
from parctl.launcher.processes import adopt_orphans
from parctl.launcher.ranks import ForkStarter
from parctl.launcher.run_directory import RunDirectory
from parctl.launcher.spawn import start_fork_server
from parctl.launcher.verdict import plain_verdict, reach_verdict, verdict_text
from parctl.planner.plan import Plan

TIMEOUT_S = 300.0  # of one trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    metrics: Sequence[dict[str, Any]]  # lines of metrics.jsonl
    seconds: float


class Trials:
    """Use as a context manager, in the main thread of a process that has no other children."""

    def __init__(self, directory: Path) -> None:
        self._run = RunDirectory(directory)
        self._number = 0
        self._starter: ForkStarter | None = None

    def __enter__(self) -> Self:
        (self._run.path / "logs").mkdir(parents=True)
        self._run.state.write_text("{}", encoding="utf-8")
        adopt_orphans()  # as every supervisor: ranks become our children
        self._children = Children()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._starter is not None:
            self._starter.close()

    def run(self, plan: Plan) -> Trial:
        """Train a plan to its end. RunFailedError says which rank failed first, and how."""
        began = time.monotonic()
        self._number += 1
        for left in ("checkpoints", "metrics.jsonl"):
            path = self._run.path / left
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        self._run.plan.write_text(json.dumps(plan.to_json()), encoding="utf-8")
        outcome = self._attempt(plan)
        if outcome.cancelled:
            raise RunCancelledError("interrupted")
        if not outcome.succeeded:
            raise self._error(plan, outcome)
        lines = self._run.metrics.read_text(encoding="utf-8").splitlines()
        return Trial(metrics=[json.loads(line) for line in lines], seconds=time.monotonic() - began)

    def _attempt(self, plan: Plan) -> Outcome:
        manifest = {**local_document(plan, self._run.run_id), "timeout_s": TIMEOUT_S}
        common = {**ENVIRONMENT_DEFAULTS, **os.environ, "PARCTL_RUN_DIR": str(self._run.path)}
        if self._starter is None or not self._starter.usable:
            log = self._run.forkserver_log
            server = start_fork_server({**common, "PARCTL_RUN_ID": self._run.run_id}, str(log))
            self._starter = ForkStarter(server, plan=self._run.plan, run_dir=self._run.path)
        return Attempt(
            run=self._run,
            number=self._number,
            manifest=manifest,
            environment={**common, **manifest["env"]},
            children=self._children,
            starter=self._starter,
            deadline=time.monotonic() + TIMEOUT_S,
            changed=lambda ranks, processes: None,
            spared=[self._starter.pid],
        ).run()

    def _error(self, plan: Plan, outcome: Outcome) -> ParctlError:
        verdict: Verdict
        if outcome.complaint is not None or not outcome.failures:
            complaint = outcome.complaint or "the trial failed"
            verdict = plain_verdict(complaint, cause=complaint, fix=None)
        else:
            verdict = reach_verdict(
                plan.layout,
                outcome.failures,
                silent=outcome.silent,
                attempt_started=outcome.started_unix,
                oom_kills=outcome.oom_kills,
                redact=[],
            )
        return RunFailedError(verdict_text(verdict), hint=verdict.fix)
