"""What a run waits for in Kueue's queue."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from parctl.launcher.kubernetes.causes import Cause, event_line, events_of
from parctl.launcher.kubernetes.facts import Facts
from parctl.launcher.kubernetes.names import Object
from parctl.launcher.kubernetes.objects import created_unix, is_gated
from parctl.launcher.kubernetes.state import is_suspended

QUIET_S = 15.0


def queue_causes(facts: Facts) -> Sequence[Cause]:
    """Why the run is not admitted; empty when it is, or goes through no queue."""
    held = is_suspended(facts.run.workload) or any(map(is_gated, facts.run.rank_pods))
    if not held:
        return []
    if facts.queue is None:
        return [
            Cause(
                sentence=f"{facts.run.workload['kind']} {facts.run_id} is suspended, and no queue "
                "holds it: somebody set spec.suspend",
                fix=f"`kubectl patch {facts.run.workload['kind'].lower()} {facts.run_id} "
                '--type merge -p \'{"spec": {"suspend": false}}\'`',
            )
        ]
    if not facts.has_kueue:
        return [
            Cause(
                sentence=f"the run names queue {facts.queue}, and the cluster has no Kueue",
                fix="leave `launch.queue` out, or have Kueue installed",
            )
        ]
    if facts.local_queue is None:
        return [
            Cause(
                sentence=f"there is no queue {facts.queue} in the namespace",
                fix="`kubectl get localqueues` lists them; correct `launch.queue`",
            )
        ]
    stopped = _stopped(facts)
    if stopped:
        return stopped
    entry = facts.queue_entry
    if entry is None:
        age = facts.now_unix - created_unix(facts.run.workload)
        if age < QUIET_S:
            return [Cause(sentence="Kueue has not looked at the run yet", fix=None)]
        return [
            Cause(
                sentence=f"Kueue has not looked at the run for {age:.0f} s: its controller is not "
                "running, or does not manage this kind of workload",
                fix="have it started again, or have the kind added to its `integrations`",
            )
        ]
    return [_waiting(facts, entry)]


def _stopped(facts: Facts) -> list[Cause]:
    policies = (
        (f"queue {facts.queue}", (facts.local_queue or {}).get("spec", {}).get("stopPolicy")),
        (
            f"cluster queue {(facts.cluster_queue or {}).get('metadata', {}).get('name')}",
            (facts.cluster_queue or {}).get("spec", {}).get("stopPolicy"),
        ),
    )
    for what, policy in policies:
        if policy and policy != "None":
            return [
                Cause(
                    sentence=f"{what} is stopped (stopPolicy {policy}): it admits nothing",
                    fix="ask whoever stopped it, or use another `launch.queue`",
                )
            ]
    active = _any_condition(facts.cluster_queue or {}, "Active")
    if active is not None and active["status"] == "False":
        return [
            Cause(
                sentence=f"the cluster queue behind {facts.queue} is not active: "
                f"{active.get('message')}",
                fix="`kubectl describe clusterqueue` says more; its administrator has to mend it",
            )
        ]
    return []


def _waiting(facts: Facts, entry: Object) -> Cause:
    evicted = _any_condition(entry, "Evicted")
    if evicted is not None and evicted["status"] == "True" and not _reserved(entry):
        reason, message = evicted.get("reason"), str(evicted.get("message") or "")
        if reason == "Preempted":
            return Cause(
                sentence=f"Kueue has pre-empted the run: {message}",
                fix="it is resumed when there is room; a higher priority goes first",
            )
    reserved = _any_condition(entry, "QuotaReserved") or {}
    message = str(reserved.get("message") or "")
    events = [event_line(event) for event in events_of(facts, "Pending")[:1]]
    if "doesn't exist" in message or "inactive" in message:
        return Cause(sentence=f"Kueue cannot queue the run: {message}", fix=None)
    if "requested level" in message or "TopologyAwareScheduling" in message:
        return Cause(
            sentence=f"queue {facts.queue} does not place by the tier that the run asks for: "
            f"{message}",
            fix="correct `launch.kubernetes.topology`, or use a queue whose flavor has that level",
            evidence=tuple(events),
        )
    if "topology" in message.lower() and "insufficient" not in message.lower():
        return Cause(
            sentence=f"Kueue finds no {_domain(message)} with room for all pods: {message}",
            fix="ask for a wider tier (`launch.kubernetes.topology`), or for fewer nodes",
            evidence=tuple(events),
        )
    lacking = re.search(r"insufficient (?:unused )?quota[^,]*?(?:, (\d+\S*) more needed)?", message)
    if "insufficient" in message and "unused" not in message:
        return Cause(
            sentence=f"queue {facts.queue} can never hold the run: {message}",
            fix="ask for less, or use a larger queue",
            evidence=tuple(events),
        )
    if lacking:
        others = f"; {_pending(facts)} wait there" if _pending(facts) else ""
        return Cause(
            sentence=f"queue {facts.queue} is full: {message}{others}",
            fix="wait until other runs have ended, or ask for less",
            evidence=tuple(events),
        )
    return Cause(
        sentence=f"the run waits in queue {facts.queue}: {message or 'Kueue says no more'}",
        fix=None,
        evidence=tuple(events),
    )


def _reserved(entry: Object) -> bool:
    found = _any_condition(entry, "QuotaReserved")
    return found is not None and found["status"] == "True"


def _domain(message: str) -> str:
    match = re.search(r'topology "?([\w.-]+)"?', message)
    return f"domain of topology {match[1]}" if match else "place"


def _pending(facts: Facts) -> str:
    count = ((facts.local_queue or {}).get("status") or {}).get("pendingWorkloads") or 0
    return f"{count} runs" if count > 1 else ""


def _any_condition(each: Mapping[str, Any], kind: str) -> Mapping[str, Any] | None:
    """The condition of that type, true or false."""
    for entry in (each.get("status") or {}).get("conditions") or ():
        if entry["type"] == kind:
            found: Mapping[str, Any] = entry
            return found
    return None
