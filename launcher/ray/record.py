"""How a run on Ray is doing, as its driver tells it and any client reads it.

The short part stands in the metadata of Ray's own job table, under the key `parctl`. Whoever has
the address reads it with one request for all runs, it needs no port and no file system of its own,
and it outlives the driver and its node; with a fault-tolerant head also the head. What is long (the
ranks) is a file among Ray's logs on the driver's node, which the dashboard hands out.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from parctl.launcher.backend import RankStatus, State, Verdict
from parctl.recipes.frozen import from_json, to_json

KEY = "parctl"
# set by the client
PLAN_KEY, STEPS_KEY, OWNER_KEY = "parctl_plan", "parctl_steps", "parctl_owner"
SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    state: State
    attempt: int  # counts from 1; 0 until the first has begun
    restarts: int
    step: int | None
    ended_unix: float | None
    verdict: Verdict | None
    reason: str | None  # why it waits, in a sentence
    fix: str | None
    updated_unix: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """What changes with the ranks."""

    ranks: tuple[RankStatus, ...]
    nodes: Mapping[str, str]  # node name -> Ray's id of the node
    history: tuple[str, ...]  # what happened so far, in sentences


def record_text(record: Record) -> str:
    return json.dumps({"schema": SCHEMA, **to_json(record)})


def read_record(metadata: Mapping[str, Any] | None) -> Record | None:
    """The driver's word on a run; None before its first, or from another version of parctl."""
    try:
        data = dict(json.loads((metadata or {})[KEY]))
        if data.pop("schema") != SCHEMA:
            return None
        record = from_json(Record, data)
        return replace(record, state=State(record.state))
    except (KeyError, TypeError, ValueError):
        return None


def details_text(details: Details) -> str:
    return json.dumps({"schema": SCHEMA, **to_json(details)})


def read_details(data: Any) -> Details | None:
    try:
        content = dict(data)
        if content.pop("schema") != SCHEMA:
            return None
        return from_json(Details, content)
    except (KeyError, TypeError, ValueError):
        return None
