"""Ray's job table and logs as a client sees them, one function per request."""

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

from parctl.errors import BackendError
from parctl.launcher.ray.packages import MAX_BYTES, Package
from parctl.topology.sources.ray_dashboard import Dashboard, NotFoundError, quoted

POLL_S = 0.2
QUIET_S = 1.0  # with no new line for so long it is asked whether the run has ended
SETTLE_S = 0.5  # what is still under way when it has
LONG_SILENCE_S = 3600.0
EVERYTHING = -1  # lines
NO_AGENT = "No available agent"  # in the words of Ray's refusal
AGENT_S = 60.0  # a head that starts on a busy machine; its dashboard answers before its agent


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One row of the job table."""

    job_id: str
    status: str  # PENDING, RUNNING, STOPPED, SUCCEEDED, FAILED
    message: str
    metadata: Mapping[str, str]
    created_unix: float
    ended_unix: float | None
    driver_node: str | None  # Ray's id of the node that the driver runs on
    driver_exit: int | None

    @property
    def ended(self) -> bool:
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED")


def find_job(dashboard: Dashboard, job_id: str) -> Job | None:
    try:
        return _job(dashboard.get(f"/api/jobs/{quoted(job_id)}"))
    except NotFoundError:
        return None


def list_jobs(dashboard: Dashboard) -> list[Job]:
    """Every submitted job of the cluster, ours and others'."""
    rows = dashboard.get("/api/jobs/")
    return [_job(row) for row in rows if row.get("submission_id")]


def submit_job(
    dashboard: Dashboard, request: Mapping[str, Any], *, patience_s: float = AGENT_S
) -> None:
    """Put a job into the table.

    The head hands it to the agent of its own node, which comes up later than the dashboard. As long
    as there is none, Ray refuses after ten seconds; it is asked again for `patience_s`, and then
    BackendError is raised.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            dashboard.post("/api/jobs/", request)
            return
        except BackendError as error:
            if NO_AGENT not in error.message:
                raise
            if time.monotonic() >= deadline:
                raise BackendError(
                    f"Ray at {dashboard.address} takes no jobs: the agent on its head node has not "
                    f"come up in {patience_s:g} s",
                    hint="`dashboard_agent.log` on the head node says why; often its port "
                    "(--dashboard-agent-listen-port) is taken",
                ) from error
        time.sleep(POLL_S)


def node_lives(dashboard: Dashboard, node_id: str) -> bool:
    """Whether the cluster has a node of this id now."""
    answer = dashboard.get(
        "/api/v0/nodes", filter_keys="node_id", filter_predicates="=", filter_values=node_id
    )
    rows = answer["data"]["result"]["result"]
    return any(row.get("state") == "ALIVE" for row in rows)


def stop_job(dashboard: Dashboard, job_id: str) -> None:
    dashboard.post(f"/api/jobs/{quoted(job_id)}/stop")


def delete_job(dashboard: Dashboard, job_id: str) -> None:
    dashboard.delete(f"/api/jobs/{quoted(job_id)}")


def send_package(dashboard: Dashboard, package: Package) -> bool:
    """Upload a package unless the cluster has it. Returns whether it was sent."""
    path = f"/api/packages/{package.uri.replace('://', '/')}"
    if dashboard.exists(path):
        return False
    data = package.zipped()
    if len(data) > MAX_BYTES:
        raise BackendError(
            f"{package.holds}: {len(data) / 2**20:.0f} MiB, and Ray takes {MAX_BYTES / 2**20:.0f}"
        )
    try:
        dashboard.put(path, data)
    except BackendError as error:
        raise BackendError(
            f"{package.holds} ({len(data) / 2**20:.1f} MiB) could not be sent: {error.message}",
            hint=error.hint or "nothing was started; the same command tries again",
        ) from error
    return True


def read_file(dashboard: Dashboard, node: str, name: str) -> str | None:
    """A file among the logs of a node; None when the node or the file is gone."""
    query: dict[str, str | int] = {"node_id": node, "filename": name, "lines": EVERYTHING}
    try:
        with dashboard.stream("/api/v0/logs/file", timeout_s=10.0, **query) as answer:
            return answer.read().decode(errors="replace")
    except (BackendError, HTTPException):
        return None


def read_json(dashboard: Dashboard, node: str | None, name: str) -> Any:
    text = None if node is None else read_file(dashboard, node, name)
    try:
        return None if text is None else json.loads(text)
    except ValueError:
        return None


def job_log(dashboard: Dashboard, job: Job) -> str:
    """All that a driver has printed so far, which is a file on its node."""
    try:
        text: str = dashboard.get(f"/api/jobs/{quoted(job.job_id)}/logs")["logs"]
    except BackendError as error:
        if job.driver_node is None or node_lives(dashboard, job.driver_node):
            raise
        raise BackendError(
            f"the log of `{job.job_id}` is gone with the node that its driver ran on",
            hint="with `storage`, the ranks' own logs are in STORAGE/RUN_ID/logs",
        ) from error
    return text


def follow_job_log(dashboard: Dashboard, job: Job, *, ended: Callable[[], bool]) -> Iterator[str]:
    """Yield the lines of a job's log, those that are there and then each as it comes.

    A thread reads, since a read that timed out cannot be taken up again. When the stream breaks, it
    is begun again behind the lines that were seen.
    """
    seen = 0
    while True:
        lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(
            target=_read_stream, args=(dashboard, job, seen, lines), daemon=True
        ).start()
        last = False
        while True:
            try:
                line = lines.get(timeout=SETTLE_S if last else QUIET_S)
            except queue.Empty:
                if last:
                    return
                last = ended()
                continue
            if line is None:  # the stream broke, or has not begun
                break
            seen += 1
            yield line
        if ended():
            yield from job_log(dashboard, job).splitlines()[seen:]
            return
        time.sleep(QUIET_S)


def _read_stream(
    dashboard: Dashboard, job: Job, skip: int, lines: "queue.SimpleQueue[str | None]"
) -> None:
    query: dict[str, str | int] = {
        "node_id": job.driver_node or "",
        "filename": f"job-driver-{job.job_id}.log",
        "lines": EVERYTHING,
        "interval": str(POLL_S),
    }
    try:
        with dashboard.stream("/api/v0/logs/stream", timeout_s=LONG_SILENCE_S, **query) as answer:
            for number, line in enumerate(answer):
                if number >= skip:
                    lines.put(line.decode(errors="replace").rstrip("\r\n"))
    except (BackendError, HTTPException, OSError):
        pass
    lines.put(None)


def _job(row: Mapping[str, Any]) -> Job:
    return Job(
        job_id=str(row.get("submission_id") or row.get("job_id")),
        status=str(row.get("status")),
        message=str(row.get("message") or ""),
        metadata=row.get("metadata") or {},
        created_unix=(row.get("start_time") or 0) / 1000,
        ended_unix=row["end_time"] / 1000 if row.get("end_time") else None,
        driver_node=row.get("driver_node_id"),
        driver_exit=row.get("driver_exit_code"),
    )
