"""What the ranks of a run wrote, from the logs of their pods.

A pod's log holds the lines of all its ranks, each with its rank, and the server adds the time. So
one stream per pod is read, and streams are merged by time.
"""

import heapq
import http.client
import queue
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from parctl.errors import ParctlError
from parctl.launcher.backend import LogLine
from parctl.launcher.kubernetes import names
from parctl.launcher.kubernetes.client import ApiError, Client
from parctl.launcher.kubernetes.kubeconfig import ClusterAccess
from parctl.launcher.kubernetes.names import Object
from parctl.launcher.kubernetes.objects import (
    RunObjects,
    containers,
    created_unix,
    index_of,
    label_of,
    phase_of,
)
from parctl.launcher.kubernetes.report import MARK, REPEAT_LINES, SAY

RANK_LINE = re.compile(r"\[rank (\d+)\] ?(.*)", re.DOTALL)
POLL_S = 0.5
STREAM_S = 3600.0
REFUSED = (401, 403)
REFUSALS = 10  # in a row: a server that has just started refuses what it allows a moment later
LAST_WORDS_S = 2.0  # a pod that does not end with the run may still say how it ended
Timed = tuple[str, int, LogLine]  # the server's time, a number that keeps the order, the line


def parse_line(text: str) -> LogLine | None:
    """Read one line of a pod; None: it is for programs, not for people.

    >>> parse_line("[rank 3] hello")
    LogLine(rank=3, text='hello')
    """
    match = RANK_LINE.match(text)
    if match:
        return LogLine(rank=int(match[1]), text=match[2])
    if text.startswith(MARK):
        said = text[len(MARK) :]
        return LogLine(rank=None, text=said[len(SAY) :]) if said.startswith(SAY) else None
    return LogLine(rank=None, text=text) if text else None


def read_logs(
    client: Client, run: RunObjects, *, rank: int | None, since: float | None, tail: int | None
) -> Iterator[LogLine]:
    """Yield what is there, merged by time. `tail` counts the last lines of each rank."""
    streams = [
        _timed(_pod_log(client, pod, since=since), number)
        for number, pod in enumerate(_readable(run))
    ]
    lines: Iterator[LogLine] = (
        line
        for _, _, line in heapq.merge(*streams, key=lambda timed: timed[:2])
        if rank is None or line.rank == rank
    )
    if tail is None:
        yield from lines
        return
    kept: dict[int | None, deque[tuple[int, LogLine]]] = {}
    for number, line in enumerate(lines):
        kept.setdefault(line.rank, deque(maxlen=tail)).append((number, line))
    yield from (line for _, line in heapq.merge(*kept.values(), key=lambda each: each[0]))


def follow_logs(
    access: ClusterAccess,
    objects: Callable[[], RunObjects | None],
    *,
    rank: int | None,
    since: float | None,
    tail: int | None,
    ended: Callable[[RunObjects], bool],
) -> Iterator[LogLine]:
    """Yield what is there, then each line as it arrives, over restarts, until the run ends.

    What the account may not read is raised once all else is told.
    """
    run = objects()
    if run is None:
        return
    arrived: queue.Queue[LogLine] = queue.Queue()
    followers: dict[str, _Follower] = {}
    first = True
    while True:
        over = run is None or ended(run)
        for pod in _readable(run) if run else ():
            if pod["metadata"]["uid"] not in followers:
                follower = _Follower(access, pod, arrived, since=since)
                followers[pod["metadata"]["uid"]] = follower
                follower.start()
        if first and tail is not None:
            yield from _tail_of(arrived, followers, rank, tail)
        first = False
        quiet = False
        while not quiet:
            try:
                line = arrived.get(timeout=LAST_WORDS_S if over and _outlives(run) else POLL_S)
            except queue.Empty:
                quiet = True
            else:
                if rank is None or line.rank == rank:
                    yield line
        refusal = next((each.refusal for each in followers.values() if each.refusal), None)
        if refusal is not None:
            raise refusal
        if over and (_outlives(run) or not any(each.is_alive() for each in followers.values())):
            return
        run = objects()


def _outlives(run: RunObjects | None) -> bool:
    """Whether a pod goes on when the run has ended: the head of a Ray cluster, for its log."""
    return run is not None and run.workload["kind"] == "RayJob"


def _tail_of(
    arrived: "queue.Queue[LogLine]",
    followers: "dict[str, _Follower]",
    rank: int | None,
    tail: int,
) -> Iterator[LogLine]:
    """The last lines of each rank among what is there at the beginning."""
    kept: dict[int | None, deque[tuple[int, LogLine]]] = {}
    number = 0
    while True:
        try:
            line = arrived.get(timeout=POLL_S)
        except queue.Empty:
            break
        if rank is None or line.rank == rank:
            kept.setdefault(line.rank, deque(maxlen=tail)).append((number, line))
            number += 1
    yield from (line for _, line in heapq.merge(*kept.values(), key=lambda each: each[0]))


def leader_log(client: Client, run: RunObjects, *, whole: bool) -> Iterator[str]:
    """Yield the lines of whoever leads the run: all of them, or the end that has a report.

    The report is a part of what is known of a run: whoever may not read logs does without it.
    """
    for pod in leader_pods(run) if whole else leader_pods(run)[-1:]:
        lines = None if whole else 2 * REPEAT_LINES + 2
        try:
            yield from (text for _, text in _pod_log(client, pod, lines=lines))
        except ApiError:
            if whole:
                raise


def leader_pods(run: RunObjects) -> list[Object]:
    """The pods that led, oldest first."""
    first = [pod for pod in run.rank_pods if index_of(pod) == 0]
    pods = run.coordinator_pods or first
    return sorted((pod for pod in pods if _has_started(pod)), key=created_unix)


def _readable(run: RunObjects) -> list[Object]:
    pods = [pod for pod in run.pods if _has_started(pod)]
    return sorted(pods, key=lambda pod: (created_unix(pod), index_of(pod) or 0))


def _has_started(pod: Object) -> bool:
    own = [each for each in containers(pod) if _is_main(each["name"])]
    states = [each.get(when) or {} for each in own for when in ("state", "lastState")]
    return any("running" in state or "terminated" in state for state in states)


def _is_main(name: str) -> bool:
    return name in (names.CONTAINER, names.COORDINATOR)


def _container(pod: Object) -> str:
    is_coordinator = label_of(pod, names.ROLE) == names.COORDINATOR
    return names.COORDINATOR if is_coordinator else names.CONTAINER


def _pod_log(
    client: Client, pod: Object, *, since: float | None = None, lines: int | None = None
) -> Iterator[tuple[str, str]]:
    """Yield time and text of each line. A pod whose node is gone has no log any more.

    Raises ApiError where the account may not read it.
    """
    query = {"container": _container(pod), "timestamps": "true"}
    query |= {"sinceSeconds": str(max(1, int(time.time() - since)))} if since is not None else {}
    query |= {"tailLines": str(lines)} if lines is not None else {}
    path = client.path("v1", "Pod", pod["metadata"]["name"]) + "/log"
    try:
        for line in client.stream(path, query):
            yield _split(line)
    except ApiError as error:
        if error.code in REFUSED:
            raise
    except (OSError, http.client.HTTPException):
        pass


def _split(line: bytes) -> tuple[str, str]:
    moment, _, text = line.decode(errors="replace").rstrip("\r\n").partition(" ")
    return moment, text


def _timed(lines: Iterator[tuple[str, str]], number: int) -> Iterator[Timed]:
    for moment, text in lines:
        line = parse_line(text)
        if line is not None:
            yield _sortable(moment), number, line


def _sortable(moment: str) -> str:
    """Times end in as many digits as they need: bring them to one length."""
    head, _, rest = moment.partition(".")
    return f"{head}.{rest.rstrip('Z'):0<9}" if rest else f"{head.rstrip('Z')}.{0:09}"


class _Follower(threading.Thread):
    """Reads one pod to its end, and takes a broken connection up where it broke."""

    def __init__(
        self,
        access: ClusterAccess,
        pod: Object,
        arrived: "queue.Queue[LogLine]",
        *,
        since: float | None,
    ) -> None:
        super().__init__(daemon=True)
        self._client = Client(access)
        self._pod, self._arrived, self._since = pod, arrived, since
        self._last = ""  # time of the last line
        self._refused: ApiError | None = None  # the last time that something was asked
        self.refusal: ApiError | None = None  # what the account may not read, for good

    def run(self) -> None:
        refused = 0
        while refused < REFUSALS:
            self._refused = None
            if self._is_over(self._read):
                return
            # the end of a pod whose log was refused is not the end of the log
            if not self._refused and self._is_over(self._has_ended):
                return
            refused = refused + 1 if self._refused else 0
            time.sleep(POLL_S)
        self.refusal = self._refused

    def _is_over(self, ask: Callable[[], bool]) -> bool:
        """Whether nothing more will come: `ask` says so, or the pod or its log is gone."""
        try:
            return ask()
        except ApiError as error:
            if error.code in REFUSED:
                self._refused = error
                return False
            return error.code < 500
        except (OSError, http.client.HTTPException, ParctlError):
            return False

    def _read(self) -> bool:
        """Read until the connection ends, which is not yet the end of the pod."""
        query = {"container": _container(self._pod), "timestamps": "true", "follow": "true"}
        if self._last:
            query["sinceTime"] = self._last
        elif self._since is not None:
            query["sinceSeconds"] = str(max(1, int(time.time() - self._since)))
        path = self._client.path("v1", "Pod", self._pod["metadata"]["name"]) + "/log"
        known = self._last
        for raw in self._client.stream(path, query, timeout_s=STREAM_S):
            moment, text = _split(raw)
            if known and _sortable(moment) <= _sortable(known):
                continue  # read already, before the connection broke
            self._last = moment
            line = parse_line(text)
            if line is not None:
                self._arrived.put(line)
        return False

    def _has_ended(self) -> bool:
        pod = self._client.get("v1", "Pod", self._pod["metadata"]["name"])
        if pod is None or pod["metadata"]["uid"] != self._pod["metadata"]["uid"]:
            return True
        return phase_of(pod) in ("Succeeded", "Failed")
