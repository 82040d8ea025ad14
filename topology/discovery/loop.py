"""The daemon's loop: read when the node boots, when something changed, and every few minutes.

    every `poll_s`:       has the fingerprint changed?     costs microseconds
    every `interval_s`:   a full reading                   costs a process of a tenth of a second

A cluster that does not answer stops nothing: what could not be told is told at the next poll.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from parctl.topology.discovery.fingerprint import fingerprint
from parctl.topology.discovery.publish import Api, Published, Target, publish, recall
from parctl.topology.discovery.reading import Reading, read_node

SETTLE_S = 1.0  # a driver that is being loaded makes its devices one by one


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    interval_s: float
    poll_s: float
    alive: Path | None  # touched at every poll, for the liveness probe
    published: Path | None  # touched when a reading was told, for the startup probe


def run(
    api: Api,
    target: Target,
    pace: Pace,
    *,
    stop: Event,
    wanted: Event,
    read: Callable[[], Reading] = read_node,
    root: Path = Path("/"),
) -> None:
    """Loop until `stop` is set; `wanted` asks for a reading at once."""
    told: Published | None = None
    pending: Reading | None = None
    before: Published | None = None  # what the cluster had when telling `pending` began
    mark, due_s = 0, 0.0
    while not stop.is_set():
        if pace.alive is not None:
            pace.alive.touch()
        seen = fingerprint(root)
        if seen != mark or wanted.is_set() or time.monotonic() >= due_s:
            if mark and seen != mark:
                stop.wait(min(SETTLE_S, pace.poll_s))
            wanted.clear()
            mark, due_s = fingerprint(root), time.monotonic() + pace.interval_s
            pending = read()
            _say_failure(pending)
        if pending is not None:
            try:
                before = before or recall(api, target, told)
                told = publish(api, target, pending, before)
                pending = before = None
                if pace.published is not None:
                    pace.published.touch()
            except Exception as error:  # a refusal, a network that is gone: both may pass
                print(f"not published: {error}", file=sys.stderr, flush=True)
        stop.wait(pace.poll_s)


def _say_failure(reading: Reading) -> None:
    if reading.failure is not None:
        print(f"not read: {reading.failure}", file=sys.stderr, flush=True)
