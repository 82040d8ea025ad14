"""The loop of a replica's first rank: requests from the front into the engine, tokens back.

::

    while it serves:  hear the front -> one step of the engine -> tell the front

Without work a step is only a sign of life, once a second: so collectives do not time out, and a
rank that died meanwhile is noticed. Where replicas step together it comes more often, because the
first step of a request waits for that of the others.
"""

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from parctl.errors import UsageError
from parctl.runtime.inference.engine import Engine
from parctl.runtime.serving.leaders import Leaders
from parctl.runtime.serving.link import Link
from parctl.runtime.serving.wire import request_from

HEARTBEAT_S = 1.0
TOGETHER_S = 0.02
STATS_S = 1.0
STOP_POLL_S = 0.02  # how often an idle leader looks whether it is to stop, or to step


def lead(engine: Engine, link: Link, leaders: Leaders, *, stop: Callable[[], bool]) -> None:
    """Serve until the front closes the link in order. FrontLostError: it went without a word."""
    asked = closing = was_busy = False
    beat_s = TOGETHER_S if leaders.together else HEARTBEAT_S
    next_stats, next_beat = 0.0, 0.0
    while leaders.together or not closing:
        busy = engine.unfinished() > 0 or closing
        for kind, content in () if closing else link.receive(0.0 if busy else STOP_POLL_S):
            closing = closing or kind == "close"
            hear(engine, link, kind, content)
        if stop() and not asked:
            asked = True
            link.say("drain", {})
        now = time.monotonic()
        emitted = []
        stepped = engine.unfinished() > 0 or closing or now >= next_beat
        if stepped:
            emitted = engine.step()
            next_beat = now + beat_s
        # who has had the last token, or is the first to ask, finds figures that say so
        is_busy = engine.unfinished() > 0
        if (is_busy != was_busy or now >= next_stats) and not closing:
            link.say("stats", asdict(engine.stats()))
            next_stats = now + STATS_S
        was_busy = is_busy
        link.tokens(emitted)
        if stepped and leaders.together and leaders.all_through(closing):
            break
    engine.close()
    link.close()


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
