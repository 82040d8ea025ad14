"""One reason why a run does not go on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parctl.launcher.kubernetes.facts import Facts
from parctl.launcher.kubernetes.names import Object


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    sentence: str
    fix: str | None
    evidence: tuple[str, ...] = ()
    final: bool = False  # nothing else matters any more


def events_of(facts: Facts, *reasons: str) -> list[Mapping[str, Any]]:
    """Events with one of these reasons, newest first."""
    found = [event for event in facts.events or () if event.get("reason") in reasons]
    return found[::-1]


def event_line(event: Mapping[str, Any]) -> str:
    about = event["involvedObject"]
    return f"event {event['reason']} of {about['kind']} {about['name']}: {event['message']}"


def pod_name(pod: Object) -> str:
    name: str = pod["metadata"]["name"]
    return name


def some(items: Sequence[str], most: int = 3) -> str:
    shown = ", ".join(items[:most])
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"
