"""The cluster as the driver finds it: which nodes live, what is free on them, and who has the rest.

Nodes have the names that a topology of the same cluster gives them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from parctl.errors import BackendError
from parctl.topology.sources.ray import RayNode, named_nodes, nodes_of
from parctl.topology.sources.ray_dashboard import Dashboard

EPSILON = 1e-4  # Ray counts in ten-thousandths


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    name: str
    node_id: str
    total: Mapping[str, float]
    free: Mapping[str, float]

    def holds(self, need: Mapping[str, float]) -> bool:
        """Whether so much is free here."""
        return all(self.free.get(name, 0.0) >= amount - EPSILON for name, amount in need.items())

    def could_hold(self, need: Mapping[str, float]) -> bool:
        """Whether it would be free if nobody else were here."""
        return all(self.total.get(name, 0.0) >= amount - EPSILON for name, amount in need.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who has something of a node."""

    node_id: str
    who: str  # `job other-1, actor Trainer`
    amounts: Mapping[str, float]


def read_nodes() -> dict[str, NodeState]:
    """The living nodes by name. In the driver: Ray itself is asked, which is faster than HTTP."""
    import ray

    free = ray._private.state.available_resources_per_node()
    found = {}
    for name, node in named_nodes(nodes_of(ray.nodes())).items():
        if node.node_id in free:
            found[name] = NodeState(
                name=name,
                node_id=node.node_id,
                total=_amounts(node),
                free={key: float(value) for key, value in free[node.node_id].items()},
            )
    return found


def read_holders(dashboard: Dashboard) -> list[Holder]:
    """Who has CPUs or GPUs now: placement groups first, then actors and tasks outside of them."""
    try:
        groups = _rows(dashboard, "placement_groups")
        actors = _rows(dashboard, "actors")
        jobs = {row.get("job_id"): row.get("submission_id") for row in dashboard.get("/api/jobs/")}
    except BackendError:  # an explanation may lack names
        return []
    found = []
    for group in groups:
        if group.get("state") == "CREATED":
            for bundle in group.get("bundles") or ():
                amounts = _plain(bundle.get("unit_resources") or bundle.get("resources") or {})
                who = _who(jobs.get(group.get("creator_job_id")), "placement group", group)
                found.append(Holder(node_id=str(bundle.get("node_id")), who=who, amounts=amounts))
    for actor in actors:
        needed = _plain(actor.get("required_resources") or {})
        if actor.get("state") == "ALIVE" and needed and not actor.get("placement_group_id"):
            who = _who(jobs.get(actor.get("job_id")), "actor", actor)
            found.append(Holder(node_id=str(actor.get("node_id")), who=who, amounts=needed))
    return found


def count_waiting(dashboard: Dashboard) -> int:
    """How many placement groups wait. Ray serves them in no particular order."""
    try:
        rows = _rows(dashboard, "placement_groups")
    except BackendError:
        return 0
    return sum(row.get("state") in ("PENDING", "RESCHEDULING") for row in rows)


def _rows(dashboard: Dashboard, kind: str) -> list[Mapping[str, Any]]:
    answer = dashboard.get(f"/api/v0/{kind}", detail=1, limit=10_000)
    rows: list[Mapping[str, Any]] = answer["data"]["result"]["result"]
    return rows


def _who(job: str | None, kind: str, row: Mapping[str, Any]) -> str:
    name = row.get("name") or row.get("class_name") or ""
    parts = [f"job {job}" if job else "", f"{kind} {name}".strip()]
    return ", ".join(part for part in parts if part)


def _plain(amounts: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(amounts[name]) for name in ("GPU", "CPU") if amounts.get(name)}


def _amounts(node: RayNode) -> dict[str, float]:
    return {
        str(name): float(amount)
        for name, amount in node.resources.items()
        if isinstance(amount, int | float)
    }
