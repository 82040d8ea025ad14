"""The health of a node as conditions, the way Kubernetes' own objects tell it.

One condition per thing that can break, `True` while it works, and `Healthy` over all of them. A
condition keeps its time until its status changes; what changed since the last reading becomes
events.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parctl.topology.discovery.reading import Fault, Reading

DISCOVERED, HEALTHY = "Discovered", "Healthy"
DEVICES, LINKS, MEMORY, NETWORK = (
    "DevicesHealthy",
    "LinksHealthy",
    "MemoryHealthy",
    "NetworkHealthy",
)
# kinds of faults; any other is of the devices
OF_KIND = {
    "dead-nvlink": LINKS,
    "fewer-links": LINKS,
    "asymmetric-link": LINKS,
    "ecc": MEMORY,
    "missing-nic": NETWORK,
}
MAX_MESSAGE = 1000  # characters; an event takes no more

Condition = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A condition that is not what it was: an event."""

    warning: bool
    reason: str
    message: str


def conditions_of(
    reading: Reading, faults: Sequence[Fault], before: Sequence[Mapping[str, Any]], now: str
) -> list[Condition]:
    """The conditions of a reading. `now` is the time that changed ones get."""
    told = [_discovered(reading)]
    if told[0]["status"] == "True":
        by_type: dict[str, list[Fault]] = {name: [] for name in (DEVICES, LINKS, MEMORY, NETWORK)}
        for fault in faults:
            by_type[OF_KIND.get(fault.kind, DEVICES)].append(fault)
        told += [_health(name, own) for name, own in by_type.items()]
        told.append(_health(HEALTHY, list(faults)))
    else:
        # nothing is known of the rest: neither good nor bad
        unread = [DEVICES, LINKS, MEMORY, NETWORK, HEALTHY]
        told += [_condition(name, "Unknown", "NotRead", told[0]["message"]) for name in unread]
    previous = {str(condition["type"]): condition for condition in before}
    for condition in told:
        last = previous.get(condition["type"])
        same = last is not None and last.get("status") == condition["status"]
        condition["lastTransitionTime"] = last["lastTransitionTime"] if last and same else now
    return told


def changes(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]
) -> list[Change]:
    """What is worth an event: something broke, broke otherwise, or works again."""
    previous = {str(condition["type"]): condition for condition in before}
    found = []
    for condition in after:
        if condition["type"] == HEALTHY:  # said by the others
            continue
        last = previous.get(str(condition["type"]), {})
        broken = condition["status"] == "False"
        differs = last.get("message") != condition["message"]
        if broken and (last.get("status") != "False" or differs):
            found.append(
                Change(warning=True, reason=condition["reason"], message=condition["message"])
            )
        elif condition["status"] == "True" and last.get("status") == "False":
            message = f"{condition['type']}: {last.get('message', '')}: no more"
            found.append(Change(warning=False, reason="Recovered", message=message[:MAX_MESSAGE]))
    return found


def status_of(conditions: Sequence[Mapping[str, Any]], name: str) -> str:
    return next((str(each["status"]) for each in conditions if each["type"] == name), "Unknown")


def _discovered(reading: Reading) -> Condition:
    if reading.failure is not None:
        return _condition(DISCOVERED, "False", "NotRead", reading.failure)
    if reading.node is None:
        why = "; ".join(reading.warnings) or "no driver library answers on this node"
        return _condition(DISCOVERED, "False", "NoDevice", why)
    return _condition(DISCOVERED, "True", "Read", f"{len(reading.node['gpus'])} GPUs")


def _health(name: str, faults: Sequence[Fault]) -> Condition:
    if not faults:
        return _condition(name, "True", "NoFault", "")
    reason = "".join(word.capitalize() for word in faults[0].kind.split("-"))
    return _condition(name, "False", reason, "; ".join(fault.message for fault in faults))


def _condition(name: str, status: str, reason: str, message: str) -> Condition:
    return {"type": name, "status": status, "reason": reason, "message": message[:MAX_MESSAGE]}
