"""The plan: one plain JSON value that `plan` prints, `launch` sends and the runtime reads.

Free of torch, pydantic and yaml, because cluster nodes read it. `hash` is the sha256 of the canonical JSON (sorted
keys, no spaces) without `memory`, `time` and `hash`: estimates may improve without making it another plan.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from parctl.errors import UsageError
from parctl.recipes.spec import Recipe, from_json, to_json
from parctl.topology.layout import Layout

SCHEMA = 1
ESTIMATES = ("memory", "time")


@dataclass(frozen=True, kw_only=True)
class Plan:
    recipe: Recipe
    topology: Mapping[
        str, Any
    ]  # {"digest": ..., "source": ..., "nodes": [names that the layout uses]}
    layout: Layout
    stages: tuple[tuple[int, ...], ...]  # layers of every pipeline stage
    memory: Mapping[str, Any]
    time: Mapping[str, Any]
    backend: Mapping[str, Any]  # {"kind": "local", ...}
    parctl_version: str

    @property
    def hash(self) -> str:
        content = {key: value for key, value in self._content().items() if key not in ESTIMATES}
        return "sha256:" + hashlib.sha256(canonical(content).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        return {"schema": SCHEMA, "hash": self.hash, **self._content()}

    def _content(self) -> dict[str, Any]:
        return {
            "parctl_version": self.parctl_version,
            "recipe": to_json(self.recipe),
            "topology": to_json(self.topology),
            "layout": to_json(self.layout),
            "stages": to_json(self.stages),
            "memory": to_json(self.memory),
            "time": to_json(self.time),
            "backend": to_json(self.backend),
        }


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text.

    >>> canonical({"b": 1, "a": [1, 2]})
    '{"a":[1,2],"b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def plan_from_json(data: Mapping[str, Any]) -> Plan:
    """Read a plan back. Raises UsageError when it is of another schema or was changed after it was made."""
    if data.get("schema") != SCHEMA:
        raise UsageError(
            f"plan has schema {data.get('schema')!r}, this parctl reads schema {SCHEMA}",
            hint="make the plan again with this version: `parctl plan RECIPE -o json`",
        )
    plan = Plan(
        recipe=from_json(Recipe, data["recipe"]),
        topology=data["topology"],
        layout=from_json(Layout, data["layout"]),
        stages=tuple(tuple(stage) for stage in data["stages"]),
        memory=data["memory"],
        time=data["time"],
        backend=data["backend"],
        parctl_version=data["parctl_version"],
    )
    if plan.hash != data["hash"]:
        raise UsageError(
            f"plan hash is {data['hash']}, but its content hashes to {plan.hash}",
            hint="plans are not edited by hand: make it again",
        )
    return plan
