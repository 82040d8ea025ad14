"""The loop of a replica's first rank: requests from the front into the engine, tokens back.

::

    while it serves:  hear the front -> one step of the engine -> tell the front

Without work a step is only a sign of life, once a second: so collectives do not time out, and a
rank that died meanwhile is noticed.
"""

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from parctl.errors import UsageError
from parctl.runtime.inference.engine import Engine
from parctl.runtime.serving.link import Link
from parctl.runtime.serving.wire import request_from

HEARTBEAT_S = 1.0
STATS_S = 1.0
STOP_POLL_S = 0.1  # how often an idle leader looks whether it is to stop


def lead(engine: Engine, link: Link, *, stop: Callable[[], bool]) -> None:
    """Serve until the front closes the link in order. FrontLostError: it went without a word."""
    asked = False
    next_stats, next_beat = 0.0, 0.0
    while True:
        busy = engine.unfinished() > 0
        for kind, content in link.receive(0.0 if busy else STOP_POLL_S):
            if kind == "close":
                engine.close()
                link.close()
                return
            hear(engine, link, kind, content)
        if stop() and not asked:
            asked = True
            link.say("drain", {})
        now = time.monotonic()
        if engine.unfinished() > 0 or now >= next_beat:
            link.tokens(engine.step())
            next_beat = now + HEARTBEAT_S
        if now >= next_stats:
            link.say("stats", asdict(engine.stats()))
            next_stats = now + STATS_S


def hear(engine: Engine, link: Link, kind: str, content: Any) -> None:
    if kind == "add":
        request = request_from(content)
        try:
            engine.add(request)
        except UsageError as error:
            link.say("refused", [request.id, error.message])
    elif kind == "cancel":
        request_id, sample_index = content
        engine.cancel(request_id, sample_index)
