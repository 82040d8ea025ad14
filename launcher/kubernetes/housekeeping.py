"""What the coordinator does in the cluster, apart from leading: it reports, and buries the dead.

A thread of its own, because the API server may keep it waiting, and agents must not wait for it.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from parctl.errors import ParctlError
from parctl.launcher.kubernetes import names
from parctl.launcher.kubernetes.client import Client
from parctl.launcher.kubernetes.names import Object
from parctl.launcher.kubernetes.objects import (
    annotation_of,
    condition,
    find_workload,
    label_of,
    phase_of,
    unix,
)
from parctl.launcher.kubernetes.report import MARK, SAY, Report, read_report, report_text
from parctl.launcher.kubernetes.state import cancelled_unix, end_of
from parctl.launcher.kubernetes.stopping import bury_pod
from parctl.launcher.kubernetes.team import Peer, PodTeam

PERIOD_S = 1.0
LATE_S = 5.0  # after the end of its grace period, until a pod counts as stuck
WORDS = {
    "PreemptionByScheduler": "was pre-empted",
    "DeletionByTaintManager": "was on a node that does not answer",
    "EvictionByEvictionAPI": "was evicted",
    "TerminationByKubelet": "was ended by its node",
    "DeletionByPodGC": "was deleted with its node",
}


class Housekeeping:
    """`over`: the workload has ended, or somebody cancelled it."""

    def __init__(self, client: Client, run_id: str, team: PodTeam, *, dead_node_s: float) -> None:
        self.over = False
        self._client, self._run_id, self._team = client, run_id, team
        self._dead_node_s = dead_node_s
        self._workload: Object | None = find_workload(client, run_id)
        self._pods: dict[str, Object] = {}  # by name
        self._report: Report | None = None
        self._lock = threading.Lock()
        self._finished = threading.Event()
        self._news = threading.Event()
        self._looked = 0.0  # monotonic
        self._complaints: set[str] = set()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def earlier_report(self) -> Report | None:
        """What a coordinator before this one has left."""
        if self._workload is None:
            return None
        return read_report(annotation_of(self._workload, names.STATE) or "")

    def publish(self, report: Report) -> None:
        """Have a report written into the workload's annotation, soon; the newest wins."""
        with self._lock:
            self._report = report
        self._news.set()

    def disruption_of(self, peer: Peer) -> str | None:
        """Why the cluster took a pod; None: it did not, as far as is known."""
        pod = self._pods.get(peer.place.pod)
        if pod is None:
            return "was deleted"
        found = condition(pod, "DisruptionTarget")
        if found is not None:
            return WORDS.get(str(found.get("reason")), "was taken by the cluster")
        return "was deleted" if "deletionTimestamp" in pod["metadata"] else None

    def finish(self) -> None:
        """Write what is left to be written."""
        self._finished.set()
        self._news.set()
        self._thread.join(10.0)
        self._try(self._write)

    def _run(self) -> None:
        while not self._finished.is_set():
            self._news.wait(PERIOD_S)
            self._news.clear()
            self._try(self._write)
            if time.monotonic() - self._looked >= PERIOD_S:
                self._looked = time.monotonic()
                self._try(self._look)

    def _try(self, do: Callable[[], None]) -> None:
        """Say once what the cluster refuses, and go on with what it does not."""
        try:
            do()
        except ParctlError as error:
            if error.message not in self._complaints:
                self._complaints.add(error.message)
                print(f"{MARK}{SAY}{error.message}", flush=True)

    def _look(self) -> None:
        workload = find_workload(self._client, self._run_id)
        self._workload = workload
        if workload is None or end_of(workload) or cancelled_unix(workload) is not None:
            self.over = True
            return
        pods = self._client.list("v1", "Pod", labels=f"{names.RUN}={self._run_id}") or []
        self._pods = {
            pod["metadata"]["name"]: pod for pod in pods if label_of(pod, names.ROLE) == names.RANKS
        }
        for pod in self._pods.values():
            if self._is_stuck(pod):
                name = pod["metadata"]["name"]
                node = pod["spec"].get("nodeName")
                print(f"{MARK}{SAY}pod {name} cannot leave node {node}: given up", flush=True)
                bury_pod(self._client, name)

    def _is_stuck(self, pod: Object) -> bool:
        """A pod that was told to end, did not, and is not heard of: its node is dead."""
        deadline = unix(pod["metadata"].get("deletionTimestamp"))
        if deadline is None or phase_of(pod) in ("Succeeded", "Failed"):
            return False
        if time.time() > deadline + LATE_S:
            return True
        for peer in list(self._team.peers.values()):
            if peer.place.pod == pod["metadata"]["name"] and peer.lost is None:
                return False  # it saves, and has until its deadline to do so
        lost_at = self._team.lost_at.get(pod["metadata"]["name"])
        return lost_at is not None and time.monotonic() - lost_at > self._dead_node_s

    def _write(self) -> None:
        with self._lock:
            report, self._report = self._report, None
        if report is None or self._workload is None:
            return
        change = {"metadata": {"annotations": {names.STATE: report_text(report)}}}
        workload = self._workload
        with suppress(KeyError):
            try:
                self._client.patch(workload["apiVersion"], workload["kind"], self._run_id, change)
            except ParctlError:
                with self._lock:  # the next time
                    self._report = self._report or report
                raise
