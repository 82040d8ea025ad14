"""Everything that `parctl why` looks at, read once. What may not be read is said, not guessed."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parctl.errors import BackendError
from parctl.launcher.kubernetes import names
from parctl.launcher.kubernetes.client import Client
from parctl.launcher.kubernetes.names import Object
from parctl.launcher.kubernetes.objects import PARTS, RunObjects, kueue_api, label_of
from parctl.launcher.kubernetes.report import Report
from parctl.launcher.kubernetes.state import newest_report


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """`None` for what could not be read; an empty list for what is not there."""

    run: RunObjects
    report: Report | None
    # what makes pods for the workload: the Jobs of a JobSet, the coordinator's, a RayJob's
    # RayCluster, the StatefulSets of a LeaderWorkerSet
    jobs: Sequence[Object]
    events: Sequence[Mapping[str, Any]] | None  # of these objects, oldest first
    nodes: Sequence[Object] | None
    others: Sequence[Object] | None  # pods of anybody that use the same resource
    queue_entry: Object | None  # Kueue's Workload
    local_queue: Object | None
    cluster_queue: Object | None
    has_kueue: bool
    unread: Sequence[str]  # what may not be read, and why
    now_unix: float

    @property
    def run_id(self) -> str:
        return self.run.run_id

    @property
    def queue(self) -> str | None:
        return label_of(self.run.workload, names.QUEUE)

    @property
    def looked_at(self) -> str:
        counts = {
            "pods": len(self.run.pods),
            "jobs": len(self.jobs),
            "events": None if self.events is None else len(self.events),
            "nodes": None if self.nodes is None else len(self.nodes),
        }
        read = [f"{count} {what}" for what, count in counts.items() if count is not None]
        entry = ["Kueue's Workload"] if self.queue_entry else []
        return ", ".join([self.run.workload["kind"], *read, *entry])


def gather_facts(client: Client, run: RunObjects, report: Report | None) -> Facts:
    """Read what there is. Being refused one kind of object leaves the others."""
    unread: list[str] = []

    def read(what: str, api: str, kind: str, **choices: Any) -> list[Object] | None:
        try:
            return client.list(api, kind, **choices) or []
        except BackendError as error:
            unread.append(f"{what}: {error.message}")
            return None

    run_label = f"{names.RUN}={run.run_id}"
    jobs = read("jobs", "batch/v1", "Job", labels=run_label) or []
    if run.workload["kind"] in PARTS:
        part_api, kind, label = PARTS[run.workload["kind"]]
        own = f"{label}={run.run_id}"
        jobs = [*jobs, *(read(f"{kind}s", part_api, kind, labels=own) or [])]
    events = read("events", "v1", "Event")
    queue = label_of(run.workload, names.QUEUE)
    entry, local_queue, cluster_queue = None, None, None
    api = kueue_api(client) if queue is not None else None
    if api is not None and queue is not None:
        entries = read("Kueue's workloads", api, "Workload") or []
        uids = {run.workload["metadata"]["uid"]}
        entry = next((each for each in entries if _owned_by(each, uids)), None)
        try:
            local_queue = client.get(api, "LocalQueue", queue)
            if local_queue is not None:
                cluster_queue = client.get(api, "ClusterQueue", local_queue["spec"]["clusterQueue"])
        except BackendError as error:
            unread.append(f"Kueue's queues: {error.message}")
    waits = any(not pod["spec"].get("nodeName") for pod in run.rank_pods)
    others = None
    if waits:
        others = read("pods of others", "v1", "Pod", everywhere=True)
    return Facts(
        run=run,
        report=newest_report(run, report),
        jobs=jobs,
        events=None if events is None else own_events(events, run, jobs, entry),
        nodes=read("nodes", "v1", "Node"),
        others=others,
        queue_entry=entry,
        local_queue=local_queue,
        cluster_queue=cluster_queue,
        has_kueue=api is not None,
        unread=unread,
        now_unix=client.now_unix,
    )


def own_events(
    events: Sequence[Mapping[str, Any]],
    run: RunObjects,
    jobs: Sequence[Object],
    entry: Object | None,
) -> list[Mapping[str, Any]]:
    """Events about objects of the run, oldest first; those of their namesakes before are left.

    Pods that are gone count too: a run that gave up waiting has none, and they knew why.
    """
    objects = [run.workload, *run.pods, *jobs, *([entry] if entry else [])]
    uids = {each["metadata"]["uid"] for each in objects}
    pod = re.compile(rf"{re.escape(run.run_id)}(-{names.REPLICATED_JOB}-0)?-\d+-[a-z0-9]{{5}}")
    since = run.workload["metadata"]["creationTimestamp"]

    def is_own(event: Mapping[str, Any]) -> bool:
        about = event["involvedObject"]
        gone = about.get("kind") == "Pod" and pod.fullmatch(str(about.get("name")))
        return about.get("uid") in uids or bool(gone and event_time(event) >= since)

    return sorted(filter(is_own, events), key=event_time)


def event_time(event: Mapping[str, Any]) -> str:
    series = event.get("series") or {}
    moment: str = (
        series.get("lastObservedTime")
        or event.get("lastTimestamp")
        or event.get("eventTime")
        or event["metadata"].get("creationTimestamp")
        or ""
    )
    return moment


def _owned_by(each: Object, uids: set[str]) -> bool:
    return any(owner["uid"] in uids for owner in each["metadata"].get("ownerReferences") or ())
