"""The objects of a run as the cluster has them: found by label, read once, judged elsewhere."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from parctl.launcher.kubernetes import names
from parctl.launcher.kubernetes.client import ApiError, Client
from parctl.launcher.kubernetes.leader_worker_set import (
    INDEX_LABEL,
    LEADER_WORKER_SET,
    LWS_API,
    NAME_LABEL,
)
from parctl.launcher.kubernetes.names import Object

RAY_API = "ray.io/v1"
WORKLOADS = (
    ("jobset.x-k8s.io/v1alpha2", "JobSet"),
    ("batch/v1", "Job"),
    (RAY_API, "RayJob"),
    (LWS_API, LEADER_WORKER_SET),
)
# what a controller makes of a workload, and pods of that: API, kind, the label with the run's name
PARTS = {
    "JobSet": ("batch/v1", "Job", "jobset.sigs.k8s.io/jobset-name"),
    "RayJob": (RAY_API, "RayCluster", names.RUN),
    LEADER_WORKER_SET: ("apps/v1", "StatefulSet", NAME_LABEL),
}
FORBIDDEN = 403
INDEX = "batch.kubernetes.io/job-completion-index"
WORKLOAD_LABEL = f"{names.ROLE}={names.WORKLOAD}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunObjects:
    workload: Object
    pods: Sequence[Object]  # of the ranks, and the coordinator's

    @property
    def run_id(self) -> str:
        name: str = self.workload["metadata"]["name"]
        return name

    @property
    def rank_pods(self) -> list[Object]:
        return [pod for pod in self.pods if label_of(pod, names.ROLE) == names.RANKS]

    @property
    def coordinator_pods(self) -> list[Object]:
        return [pod for pod in self.pods if label_of(pod, names.ROLE) == names.COORDINATOR]

    def newest(self, index: int) -> Object | None:
        """The pod that has this index now; earlier ones of it have failed or were replaced."""
        own = [pod for pod in self.rank_pods if index_of(pod) == index]
        return max(own, key=created_unix, default=None)


def find_workload(client: Client, run_id: str) -> Object | None:
    """The object that stands for the run."""

    def get(api: str, kind: str) -> list[Object]:
        found = client.get(api, kind, run_id)
        return [found] if found is not None and label_of(found, names.RUN) == run_id else []

    return next(_of_readable_kinds(get), None)


def list_workloads(client: Client, *, owner: str | None, everywhere: bool = False) -> list[Object]:
    labels = WORKLOAD_LABEL + (f",{names.OWNER}={owner}" if owner else "")
    return list(
        _of_readable_kinds(
            lambda api, kind: client.list(api, kind, labels=labels, everywhere=everywhere) or []
        )
    )


def _of_readable_kinds(read: Callable[[str, str], list[Object]]) -> Iterator[Object]:
    """Ask for one kind of workload after the other; who may not read a kind has none of it.

    Raises ApiError where Jobs and JobSets are both closed.
    """
    refusals = []
    for api, kind in WORKLOADS:
        try:
            yield from read(api, kind)
        except ApiError as error:
            if error.code != FORBIDDEN:
                raise
            refusals += [error] if kind in ("Job", "JobSet") else []
    if len(refusals) > 1:
        raise refusals[0]


def read_run(client: Client, run_id: str) -> RunObjects | None:
    workload = find_workload(client, run_id)
    if workload is None:
        return None
    pods = client.list("v1", "Pod", labels=f"{names.RUN}={run_id}") or []
    return RunObjects(workload=workload, pods=pods)


def kueue_api(client: Client) -> str | None:
    """The newest version of Kueue's API that the cluster has; None: it has no Kueue."""
    for version in ("kueue.x-k8s.io/v1beta2", "kueue.x-k8s.io/v1beta1"):
        if client.serves(version, "Workload"):
            return version
    return None


def label_of(each: Mapping[str, Any], key: str) -> str | None:
    value: str | None = (each["metadata"].get("labels") or {}).get(key)
    return value


def annotation_of(each: Mapping[str, Any], key: str) -> str | None:
    value: str | None = (each["metadata"].get("annotations") or {}).get(key)
    return value


def condition(each: Mapping[str, Any], kind: str) -> Mapping[str, Any] | None:
    """The condition of that type, if it is true."""
    for entry in (each.get("status") or {}).get("conditions") or ():
        if entry["type"] == kind and entry["status"] == "True":
            found: Mapping[str, Any] = entry
            return found
    return None


def index_of(pod: Mapping[str, Any]) -> int | None:
    value = annotation_of(pod, INDEX) or label_of(pod, INDEX_LABEL)
    return int(value) if value is not None and value.isdigit() else None


def phase_of(pod: Mapping[str, Any]) -> str:
    phase: str = (pod.get("status") or {}).get("phase") or "Pending"
    return phase


def created_unix(each: Mapping[str, Any]) -> float:
    return unix(each["metadata"].get("creationTimestamp")) or 0.0


def unix(timestamp: str | None) -> float | None:
    """Seconds since 1970 of a time as the API writes it."""
    return datetime.fromisoformat(timestamp).timestamp() if timestamp else None


def containers(pod: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """States of the containers, those that come first first."""
    status = pod.get("status") or {}
    return [
        *(status.get("initContainerStatuses") or ()),
        *(status.get("containerStatuses") or ()),
    ]


def terminated(pod: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """How the container of that name ended: now, or before it was started again."""
    for container in containers(pod):
        if container["name"] == name:
            now, before = container.get("state") or {}, container.get("lastState") or {}
            found: Mapping[str, Any] | None = now.get("terminated") or before.get("terminated")
            return found
    return None


def container_restarts(pod: Mapping[str, Any]) -> int:
    """How often a container of the pod was started again in its place."""
    return max((int(each.get("restartCount") or 0) for each in containers(pod)), default=0)


def is_gated(pod: Mapping[str, Any]) -> bool:
    """Whether somebody, Kueue for one, holds the pod back from the scheduler."""
    return bool(pod["spec"].get("schedulingGates"))
