"""The Ray back end as the command line sees it: every call is a request to the dashboard.

No `ray` is imported here, so `status` and its like cost what a request costs, and need nothing but
the address.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from parctl.errors import BackendError, UnknownRunError, UsageError
from parctl.launcher.backend import Diagnosis, LogLine, Manifests, RunRef, RunStatus
from parctl.launcher.contexts import Context, resolve_context
from parctl.launcher.metrics import metrics_of
from parctl.launcher.owner import label_value, owner_name
from parctl.launcher.ray.diagnosis import diagnose
from parctl.launcher.ray.grace import grace_package
from parctl.launcher.ray.job_log import read_lines, tail_of_each
from parctl.launcher.ray.jobs import (
    Job,
    delete_job,
    find_job,
    follow_job_log,
    job_log,
    list_jobs,
    node_lives,
    read_file,
    read_json,
    send_package,
    stop_job,
    submit_job,
)
from parctl.launcher.ray.record import PLAN_KEY, Details, read_details
from parctl.launcher.ray.run_files import log_name
from parctl.launcher.ray.status import status_of
from parctl.launcher.run_id import check_run_id
from parctl.planner.plan import Plan
from parctl.recipes.spec import Recipe
from parctl.topology.sources.ray_dashboard import Dashboard, find_dashboard

if TYPE_CHECKING:
    from parctl.launcher.ray.manifest import RayManifest
    from parctl.topology.model import Topology

CANCEL_S = 5.0  # until nothing is left, unless it says otherwise
SLACK_S = 15.0  # for the cluster to hear of it and to say that it is done
POLL_S = 0.2
WATCH_S = 2.5  # Ray looks after a job every second, and writes a row anew that went before


class RayBackend:
    def __init__(self) -> None:
        self._context: Context = resolve_context(backend="ray", recipe_backend=None)
        self._dashboard: Dashboard = find_dashboard(self._context.address)

    @property
    def cluster(self) -> str:
        """The source of the topology that a plan for this back end is made of."""
        return f"ray:{self._dashboard.address}"

    @contextmanager
    def head_start(self, recipe: Recipe, run_id: str) -> Iterator[None]:
        """Nothing can begin before the cluster has the plan."""
        yield

    def render(self, plan: Plan, run_id: str, topology: "Topology | None" = None) -> Manifests:
        manifest = self._manifest(plan, check_run_id(run_id))
        return Manifests(
            run_id=run_id, backend="ray", plan=plan, documents=tuple(manifest.documents())
        )

    def submit(self, manifests: Manifests) -> RunRef:
        run_id, plan = manifests.run_id, manifests.plan
        self._dashboard.ray_version()
        if self._is_there(run_id, plan):
            return RunRef(run_id=run_id, backend="ray", created=False)
        manifest = self._manifest(plan, run_id)
        for package in manifest.packages:
            send_package(self._dashboard, package)
        try:
            submit_job(self._dashboard, manifest.request)
        except BackendError:
            if self._is_there(run_id, plan):  # a launch beside this one was faster
                return RunRef(run_id=run_id, backend="ray", created=False)
            raise
        return RunRef(run_id=run_id, backend="ray", created=True)

    def status(self, run_id: str) -> RunStatus:
        return self._look(run_id)[2]

    def logs(
        self, run_id: str, *, rank: int | None, since: float | None, tail: int | None, follow: bool
    ) -> Iterator[LogLine]:
        job = self._find(run_id)
        if rank is not None:
            ranks = self.status(run_id).ranks
            if ranks and not 0 <= rank < len(ranks):
                raise UsageError(
                    f"run `{run_id}` has no rank {rank}",
                    hint=f"its ranks are 0 to {len(ranks) - 1}",
                )
        return self._logs(job, rank=rank, since=since, tail=tail, follow=follow)

    def _logs(
        self, job: Job, *, rank: int | None, since: float | None, tail: int | None, follow: bool
    ) -> Iterator[LogLine]:
        while follow and job.driver_node is None and not job.ended:
            time.sleep(POLL_S)
            job = self._find(job.job_id)
        if job.driver_node is None:
            return
        if not follow:
            written = read_lines(job_log(self._dashboard, job).splitlines(), rank=rank, since=since)
            yield from written if tail is None else tail_of_each(written, tail)
            return
        began = time.time()
        if tail is not None:
            yield from self._logs(job, rank=rank, since=since, tail=tail, follow=False)
            since = began

        def over() -> bool:
            found = self._find(job.job_id)
            return found.ended or self._driver_lost(found)

        yield from read_lines(
            follow_job_log(self._dashboard, job, ended=over), rank=rank, since=since
        )

    def cancel(self, run_id: str, *, grace_s: float | None = None) -> None:
        """Stop a run and wait until Ray says that it has ended. An ended one stays as it is."""
        job = self._find(run_id)
        if job.ended:
            return
        if grace_s is not None:
            self._dashboard.put(grace_package(run_id, grace_s), b"-")
        stop_job(self._dashboard, run_id)
        self._wait_for_end(run_id, (CANCEL_S if grace_s is None else grace_s) + SLACK_S)

    def delete(self, run_id: str) -> None:
        """Remove an ended run from Ray's job table. Files below `storage` are the user's."""
        status = self.status(run_id)
        if not status.state.ended:
            raise UsageError(
                f"run `{run_id}` is {status.state}", hint=f"`parctl cancel {run_id}` first"
            )
        self._wait_for_end(run_id, SLACK_S)  # the driver says it a moment before Ray does
        since_s = time.time() - (self._find(run_id).ended_unix or 0.0)
        time.sleep(min(WATCH_S, max(0.0, WATCH_S - since_s)))
        delete_job(self._dashboard, run_id)

    def list(self) -> Sequence[RunStatus]:
        """Every run of the cluster, newest first; ranks are left to `status`.

        One request, and one more for every node that a driver lives on: that is the head.
        """
        jobs = [job for job in list_jobs(self._dashboard) if PLAN_KEY in job.metadata]
        drivers = {job.driver_node for job in jobs if job.driver_node and not job.ended}
        lost = {node for node in drivers if not node_lives(self._dashboard, node)}
        runs = [
            status_of(job, None, where=self._where(job), driver_lost=job.driver_node in lost)
            for job in jobs
        ]
        return sorted(runs, key=lambda run: (-run.created_unix, run.run_id))

    def why(self, run_id: str) -> Diagnosis:
        job, details, status = self._look(run_id)
        return diagnose(job, status, details)

    def metrics(self, run_id: str) -> Sequence[Mapping[str, Any]]:
        job = self._find(run_id)
        name = log_name(run_id, "driver", "metrics.jsonl")
        node = job.driver_node
        text = None if node is None else read_file(self._dashboard, node, name)
        return metrics_of(text or "")

    def _manifest(self, plan: Plan, run_id: str) -> "RayManifest":
        from parctl.launcher.ray.manifest import ray_manifest

        owner = label_value(owner_name())
        return ray_manifest(plan, run_id, storage=self._context.storage, owner=owner)

    def _is_there(self, run_id: str, plan: Plan) -> bool:
        job = find_job(self._dashboard, run_id)
        if job is None:
            return False
        if job.metadata.get(PLAN_KEY) != plan.hash:
            raise UsageError(
                f"run `{run_id}` exists already with another plan",
                hint="choose another `--run-id`, or delete that run",
            )
        return True

    def _look(self, run_id: str) -> tuple[Job, Details | None, RunStatus]:
        """Its row of the table, what its driver wrote, and what follows from the two."""
        job = self._find(run_id)
        details = read_details(
            read_json(self._dashboard, job.driver_node, log_name(run_id, "driver", "state.json"))
        )
        lost = details is None and self._driver_lost(job)
        return job, details, status_of(job, details, where=self._where(job), driver_lost=lost)

    def _driver_lost(self, job: Job) -> bool:
        """Whether the table has a run going on whose driver's node is gone."""
        if job.ended or job.driver_node is None:
            return False
        return not node_lives(self._dashboard, job.driver_node)

    def _find(self, run_id: str) -> Job:
        job = find_job(self._dashboard, run_id)
        if job is None or PLAN_KEY not in job.metadata:
            raise UnknownRunError(
                f"there is no run `{run_id}` on Ray at {self._dashboard.address}",
                hint="`parctl list -b ray` shows the runs; a head that was started again without "
                "fault tolerance has forgotten those before it",
            )
        return job

    def _wait_for_end(self, run_id: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self._find(run_id).ended:
            if time.monotonic() >= deadline:
                raise BackendError(
                    f"run `{run_id}` is to end and Ray does not say that it has",
                    hint=f"`parctl why {run_id}`, and the job's page of the dashboard",
                )
            time.sleep(POLL_S)

    def _where(self, job: Job) -> str:
        return f"{self._dashboard.address}/#/jobs/{job.job_id}"
