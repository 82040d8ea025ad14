"""What the head of a Ray cluster tells of the run on it, as the leader of any other run does.

The driver writes a log, figures and its state for Ray's dashboard, which nobody reaches from
outside of the cluster. A pod's log is reached by whoever may read pods. So the head repeats there
what the driver says, and `parctl status`, `logs` and `metrics` need to know nothing of Ray.
"""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from parctl.errors import BackendError
from parctl.launcher.kubernetes.report import (
    MARK,
    METRICS,
    REPEAT_LINES,
    SAY,
    Report,
    report_line,
)
from parctl.launcher.nodes.tail import Tail
from parctl.launcher.ray.job_log import read_lines
from parctl.launcher.ray.jobs import Job, find_job, stop_job
from parctl.launcher.ray.record import Details, read_details, read_record
from parctl.launcher.ray.run_files import log_name
from parctl.launcher.ray.status import status_of
from parctl.topology.sources.ray_dashboard import DEFAULT_ADDRESS, Dashboard

LOOK_S = 1.0


class Voice:
    """Call `tick` again and again. `logs`: where Ray keeps its logs on this node."""

    def __init__(
        self,
        run_id: str,
        logs: Path,
        *,
        dashboard: Dashboard | None = None,
        write: Callable[[str], None] = lambda line: print(line, flush=True),
    ) -> None:
        self._run_id, self._write = run_id, write
        self._dashboard = dashboard or Dashboard(DEFAULT_ADDRESS)
        self._log = Tail(logs / f"job-driver-{run_id}.log")
        self._metrics = Tail(logs / log_name(run_id, "driver", "metrics.jsonl"))
        self._details = logs / log_name(run_id, "driver", "state.json")
        self._told: Report | None = None
        self._printed = 0  # lines since then
        self._looked = 0.0
        self._ended = False

    @property
    def runs(self) -> bool:
        """Whether the job is there and has not ended, as far as is known."""
        return self._told is not None and not self._ended

    def tick(self) -> None:
        """Repeat what is new."""
        if not self._ended and time.monotonic() - self._looked >= LOOK_S:
            self._looked = time.monotonic()
            with suppress(BackendError):  # Ray is coming up, or has gone
                self._look()
        for row in self._metrics.lines():
            self._write(f"{MARK}{METRICS}{row}")
        for line in read_lines(self._log.lines(last=self._ended), rank=None, since=None):
            who = f"{MARK}{SAY}" if line.rank is None else f"[rank {line.rank}] "
            self._write(f"{who}{line.text}")
            self._printed += 1
        if self._told is not None and self._printed >= REPEAT_LINES:
            self._tell(self._told)

    def stop_job(self) -> None:
        """Have the driver end the run: its ranks save first."""
        with suppress(BackendError):
            stop_job(self._dashboard, self._run_id)

    def _look(self) -> None:
        job = find_job(self._dashboard, self._run_id)
        if job is None:
            return
        report = report_of(job, self._read_details())
        if report != self._told:
            self._tell(report)
        self._ended = job.ended

    def _read_details(self) -> Details | None:
        try:
            return read_details(json.loads(self._details.read_text(encoding="utf-8")))
        except (OSError, ValueError):  # not written yet
            return None

    def _tell(self, report: Report) -> None:
        self._told, self._printed = report, 0
        self._write(report_line(report))


def report_of(job: Job, details: Details | None) -> Report:
    """What Ray's job table and the driver say, as a leader would have said it."""
    status, record = status_of(job, details, where=""), read_record(job.metadata)
    said = record.updated_unix if record else job.created_unix
    return Report(
        state=status.state,
        attempt=record.attempt if record else 0,
        restarts=status.restarts,
        step=status.step,
        ranks=status.ranks,
        verdict=status.verdict,
        reason=record.reason if record else None,
        history=details.history[-20:] if details else (),
        updated_unix=max(said, job.ended_unix or 0.0),
    )
