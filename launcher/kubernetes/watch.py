"""Watching the objects of a run: the cluster says what changes, nobody asks again and again.

A watch resumes at the last version that was seen, also after the API server was away. When that
version is too old (410) everything is listed anew. Bookmarks keep the version fresh in quiet times.
"""

import http.client
import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from parctl.errors import ParctlError
from parctl.launcher.kubernetes import names
from parctl.launcher.kubernetes.client import ApiError, Client
from parctl.launcher.kubernetes.kubeconfig import ClusterAccess
from parctl.launcher.kubernetes.names import Object
from parctl.launcher.kubernetes.objects import RunObjects

WATCH_S = 290  # the server ends a watch then, and it is taken up again
GONE = 410
FIRST_S, LONGEST_S = 0.2, 5.0  # between attempts to reach a server that is away


class ListWatch:
    """Keeps a copy of all objects of one kind and label, until told to stop."""

    def __init__(
        self,
        client: Client,
        api: str,
        kind: str,
        *,
        labels: str,
        changed: Callable[[], None],
        stopped: Callable[[], bool],
    ) -> None:
        self._client, self._api, self._kind, self._labels = client, api, kind, labels
        self._changed, self._stopped = changed, stopped
        self.objects: dict[str, Object] = {}
        self.lists = 0  # how often everything was listed
        self._version: str | None = None

    def run(self) -> None:
        """Watch until stopped. Raises ApiError when the account may not watch."""
        pause_s = FIRST_S
        while not self._stopped():
            try:
                if self._version is None:
                    self._list()
                self._watch()
                pause_s = FIRST_S
            except ApiError as error:
                if error.code == GONE:
                    self._version = None
                elif error.code < 500 and error.code != 429:
                    raise
                else:
                    pause_s = self._pause(pause_s)
            except (OSError, http.client.HTTPException, ParctlError):
                pause_s = self._pause(pause_s)

    def _pause(self, pause_s: float) -> float:
        time.sleep(pause_s)
        return min(2 * pause_s, LONGEST_S)

    def _list(self) -> None:
        query = {"labelSelector": self._labels}
        page = self._client.ask("GET", self._client.path(self._api, self._kind), query)
        kind = {"kind": self._kind, "apiVersion": self._api}
        self.objects = {each["metadata"]["uid"]: kind | each for each in page.get("items") or ()}
        self._version = page["metadata"]["resourceVersion"]
        self.lists += 1
        self._changed()

    def _watch(self) -> None:
        query = {
            "labelSelector": self._labels,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": str(self._version),
            "timeoutSeconds": str(WATCH_S),
        }
        path = self._client.path(self._api, self._kind)
        for line in self._client.stream(path, query, timeout_s=WATCH_S + 15):
            self._note(json.loads(line))
            if self._stopped():
                return

    def _note(self, event: Mapping[str, Any]) -> None:
        each = event["object"]
        if event["type"] == "ERROR":
            code = int(each.get("code") or 500)
            raise ApiError(code, each.get("reason") or "", each.get("message") or "")
        self._version = each["metadata"]["resourceVersion"]
        if event["type"] == "BOOKMARK":
            return
        if event["type"] == "DELETED":
            self.objects.pop(each["metadata"]["uid"], None)
        else:
            self.objects[each["metadata"]["uid"]] = each
        self._changed()


class RunWatch:
    """The objects of one run, kept up to date by two threads that end with the process."""

    def __init__(self, access: ClusterAccess, workload: Object) -> None:
        self._happened = threading.Event()
        self._stop = False
        run_id = workload["metadata"]["name"]
        self._workload_uid = workload["metadata"]["uid"]
        self._watches = {
            kind: ListWatch(
                Client(access),
                api,
                kind,
                labels=labels,
                changed=self._happened.set,
                stopped=lambda: self._stop,
            )
            for api, kind, labels in (
                (
                    workload["apiVersion"],
                    workload["kind"],
                    f"{names.RUN}={run_id},{names.ROLE}={names.WORKLOAD}",
                ),
                ("v1", "Pod", f"{names.RUN}={run_id}"),
            )
        }
        self._workload_kind = workload["kind"]
        self._errors: list[Exception] = []
        for watch in self._watches.values():
            threading.Thread(target=self._run, args=(watch,), daemon=True).start()

    def wait(self, timeout_s: float) -> None:
        """Return when something has changed, at most after `timeout_s`."""
        self._happened.wait(timeout_s)
        self._happened.clear()

    def objects(self) -> RunObjects | None:
        """The run as it is now; None: it is gone. Raises what a watch was refused with."""
        while not all(watch.lists for watch in self._watches.values()):
            if self._errors:
                break
            time.sleep(0.02)
        if self._errors:
            raise self._errors[0]
        workload = self._watches[self._workload_kind].objects.get(self._workload_uid)
        if workload is None:
            return None
        pods = list(self._watches["Pod"].objects.values())
        return RunObjects(workload=workload, pods=pods)

    def stop(self) -> None:
        self._stop = True

    def _run(self, watch: ListWatch) -> None:
        try:
            watch.run()
        except Exception as error:
            self._errors.append(error)
            self._happened.set()
