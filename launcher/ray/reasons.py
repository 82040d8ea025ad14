"""Why a gang cannot be placed now, so that a person understands it. Pure.

Ray itself says "infeasible" or "no resources". Whoever waits wants to know which node, what is
needed there and what is free, who has the rest, whether it can ever be, and what would fit now.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from parctl.launcher.nodes.environment import ranks_by_node
from parctl.launcher.ray.cluster import Holder, NodeState
from parctl.topology.layout import Layout
from parctl.topology.names import few


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    sentence: str
    fix: str | None


def why_not_now(
    layout: Layout,
    need_of: Callable[[int], Mapping[str, float]],
    nodes: Mapping[str, NodeState],
    holders: Sequence[Holder],
    *,
    waiting: int,
) -> Reason:
    """Say what stands in the way of `layout`. `waiting`: placement groups of others that wait."""
    slots = {name: len(of_node) for name, of_node in ranks_by_node(layout).items()}
    needs = {name: need_of(count) for name, count in slots.items()}
    now = _fits_now(needs, nodes)
    gone = [name for name in needs if name not in nodes]
    small = [name for name in needs if name in nodes and not nodes[name].could_hold(needs[name])]
    busy = [
        name
        for name in needs
        if name in nodes and name not in small and not nodes[name].holds(needs[name])
    ]
    if small:
        name = small[0]
        return Reason(
            sentence=f"{name} can never hold its ranks: {_lack(needs[name], nodes[name], 'has')}"
            f"{_others(small)}",
            fix="plan again for the cluster as it is now: launch once more",
        )
    if gone:
        return Reason(
            sentence=f"{len(gone)} of {len(needs)} nodes of the plan are not in the cluster "
            f"({few(gone)}), which has {len(nodes)} ({few(list(nodes))}); {now}",
            fix="wait for them to join, or launch again to plan for the nodes that are there",
        )
    if not busy:
        return Reason(
            sentence=f"Ray has not given the nodes yet, though they are free; {now}",
            fix=None,
        )
    name = busy[0]
    held = _held(nodes[name].node_id, needs[name], holders)
    queue = f"; {waiting} other placement groups wait too, in no order" if waiting > 1 else ""
    return Reason(
        sentence=f"{name} is taken: {_lack(needs[name], nodes[name], 'are free')}{held}"
        f"{_others(busy)}; {now}{queue}",
        fix="wait, end what holds it, or ask for fewer devices",
    )


def _lack(need: Mapping[str, float], node: NodeState, verb: str) -> str:
    has = node.total if verb == "has" else node.free
    parts = []
    for resource, amount in need.items():
        there = has.get(resource, 0.0)
        if there < amount:
            words = f"it has {there:g}" if verb == "has" else f"{there:g} {verb}"
            parts.append(f"{amount:g} {resource}s are needed and {words}")
    return ", ".join(parts)


def _held(node_id: str, need: Mapping[str, float], holders: Sequence[Holder]) -> str:
    found: dict[str, str] = {}
    for holder in holders:
        amounts = [f"{holder.amounts[r]:g} {r}" for r in need if holder.amounts.get(r)]
        if holder.node_id == node_id and amounts:
            found[holder.who] = " and ".join(amounts)
    if not found:
        return ""
    shown = [f"{amounts} by {who}" for who, amounts in list(found.items())[:3]]
    return f" (held: {'; '.join(shown)}{', ...' if len(found) > 3 else ''})"


def _others(names: Sequence[str]) -> str:
    return f"; likewise {few(list(names[1:]))}" if len(names) > 1 else ""


def _fits_now(needs: Mapping[str, Mapping[str, float]], nodes: Mapping[str, NodeState]) -> str:
    """The largest gang of this shape that could start at once."""
    largest = max(needs.values(), key=lambda need: need.get("GPU", need.get("CPU", 0.0)))
    resource = "GPU" if "GPU" in largest else "CPU"
    able = [node for node in nodes.values() if node.total.get(resource, 0.0) > 0]
    free = [node for node in able if node.holds(largest)]
    per_node, wanted = largest[resource], sum(need[resource] for need in needs.values())
    return (
        f"now {len(free)} of {len(able)} nodes could take {per_node:g} ranks each, "
        f"{len(free) * per_node:g} in all, of the {wanted:g} asked for"
    )
