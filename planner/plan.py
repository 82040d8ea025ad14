"""The plan: one plain JSON value that `plan` prints, `launch` sends and the runtime reads.

Free of torch, pydantic and yaml, because cluster nodes read it. `hash` is the sha256 of the
canonical JSON (sorted keys, no spaces) of what decides the run. Left out are `memory` and `time`,
since estimates may improve without making it another plan, and `recipe.source` and `recipe.notes`,
since the same recipe read from a file, by its shipped name or from one line is the same plan.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from parctl.errors import UsageError
from parctl.recipes.frozen import from_json, to_json
from parctl.recipes.spec import Recipe
from parctl.topology.layout import Layout, Proof, Slot

SCHEMA = 1
ESTIMATES = ("memory", "time")
PROVENANCE = ("source", "notes")  # of the recipe: where it was read, not what it asks for


@dataclass(frozen=True, kw_only=True)
class Plan:
    recipe: Recipe
    # {"digest": ..., "source": ..., "largest_tp": by the hard rule, "nodes": [names in use]}
    topology: Mapping[str, Any]
    layout: Layout
    stages: tuple[tuple[int, ...], ...]  # layers of every (virtual) stage, in model order
    memory: Mapping[str, Any]
    time: Mapping[str, Any]
    backend: Mapping[str, Any]  # {"kind": "local", ...}
    parctl_version: str

    @cached_property
    def hash(self) -> str:
        content = {key: value for key, value in self._content.items() if key not in ESTIMATES}
        content["recipe"] = {
            key: value for key, value in content["recipe"].items() if key not in PROVENANCE
        }
        return "sha256:" + hashlib.sha256(canonical(content).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        return {"schema": SCHEMA, "hash": self.hash, **self._content}

    @cached_property
    def _content(self) -> dict[str, Any]:
        return {
            "parctl_version": self.parctl_version,
            "recipe": to_json(self.recipe),
            "topology": to_json(self.topology),
            "layout": _layout_to_json(self.layout),
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
    """Read a plan back. Raises UsageError for another schema and for a plan changed since."""
    if data.get("schema") != SCHEMA:
        raise UsageError(
            f"plan has schema {data.get('schema')!r}, this parctl reads schema {SCHEMA}",
            hint="make the plan again with this version: `parctl plan RECIPE -o json`",
        )
    try:
        plan = Plan(
            recipe=from_json(Recipe, data["recipe"]),
            topology=data["topology"],
            layout=_layout_from_json(data["layout"]),
            stages=tuple(tuple(stage) for stage in data["stages"]),
            memory=data["memory"],
            time=data["time"],
            backend=data["backend"],
            parctl_version=data["parctl_version"],
        )
        stated = data["hash"]
    except (KeyError, TypeError) as error:
        raise UsageError(
            f"plan is incomplete: {type(error).__name__}: {error}",
            hint="make the plan again: `parctl plan RECIPE -o json`",
        ) from error
    if plan.hash != stated:
        raise UsageError(
            f"plan hash is {stated}, but its content hashes to {plan.hash}",
            hint="plans are not edited by hand: make it again",
        )
    return plan


# A layout of 100,000 ranks is nearly all of a plan. Its slots are written and read field by field,
# because the general `to_json` and `from_json` would spend seconds in looking up the same five
# fields again and again.


def _layout_to_json(layout: Layout) -> dict[str, Any]:
    return {
        "axes": dict(layout.axes),
        "expert_axes": None if layout.expert_axes is None else dict(layout.expert_axes),
        "ranks": list(layout.ranks),
        "slots": [
            {
                "rank": slot.rank,
                "node": slot.node,
                "node_rank": slot.node_rank,
                "local_rank": slot.local_rank,
                "gpu": slot.gpu,
            }
            for slot in layout.slots
        ],
        "proofs": to_json(layout.proofs),
        "explain": list(layout.explain),
    }


def _layout_from_json(data: Mapping[str, Any]) -> Layout:
    return Layout(
        axes=data["axes"],
        expert_axes=data["expert_axes"],
        ranks=tuple(data["ranks"]),
        slots=tuple(Slot(**slot) for slot in data["slots"]),
        proofs=tuple(from_json(Proof, proof) for proof in data["proofs"]),
        explain=tuple(data["explain"]),
    )
