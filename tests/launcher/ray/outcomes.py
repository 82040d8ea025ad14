"""What each fault led to: noted by the tests, and shown as a table by `make matrix-ray`."""

import os
import time
from calendar import timegm
from collections.abc import Collection
from dataclasses import dataclass, field

from tests.launcher.ray.runs import alive, processes

from parctl.launcher.ray.backend import RayBackend
from parctl.launcher.ray.job_log import LINE
from parctl.launcher.ray.jobs import job_log

MATRIX = "PARCTL_MATRIX" in os.environ
HEAD = ("fault", "noticed", "outcome", "after", "left", "steps lost", "what is said")


@dataclass(slots=True)
class Outcomes:
    """The table so far, one row per fault."""

    rows: list[tuple[str, ...]] = field(default_factory=list)
    _since: float = 0.0

    def begin(self) -> None:
        """The fault happens now."""
        self._since = time.time()

    def note(
        self,
        fault: str,
        outcome: str,
        said: str,
        *,
        run_id: str | None = None,  # None: nothing was started
        backend: RayBackend | None = None,  # asks the run's log when its driver noticed
        ranks: Collection[int] | None = None,  # of the attempt that failed, if another one runs
        lost: str = "-",
    ) -> None:
        """The outcome is there now."""
        after = time.time() - self._since
        noticed = self._noticed(backend, run_id) if backend and run_id else after
        if ranks is not None:
            left = sum(alive(pid) for pid in ranks)
        else:
            left = len(processes(run_id)) if run_id else 0
        shown = (f"{noticed:.1f} s", outcome, f"{after:.1f} s", str(left), lost, said)
        self.rows.append((fault, *shown))

    def table(self) -> list[str]:
        """Markdown."""
        lines = [HEAD, tuple("---" for _ in HEAD), *self.rows]
        return [f"| {' | '.join(line)} |" for line in lines]

    def _noticed(self, backend: RayBackend, run_id: str) -> float:
        """Seconds until the driver gave the attempt up."""
        for line in job_log(backend._dashboard, backend._find(run_id)).splitlines():
            match = LINE.fullmatch(line)
            if match and match[3] is None and match[4].startswith("attempt 1: "):
                seconds = timegm(time.strptime(match[1], "%Y-%m-%dT%H:%M:%S"))
                return seconds + int(match[2]) / 1000 - self._since
        raise AssertionError(f"the driver of {run_id} noticed nothing")
