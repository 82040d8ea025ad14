"""What a recipe asks of a layout, with all its degrees: before placing, and again from a plan.

The one idea: whoever lays a planned job out anew (late binding) must ask exactly what was asked
when the plan was made.
"""

from collections.abc import Mapping
from typing import TypedDict

from parctl.planner.plan import Plan
from parctl.recipes.spec import Recipe
from parctl.topology.hostlist import expand_hostlist
from parctl.topology.placement import LayoutRequest


class NodeChoice(TypedDict):
    exclude: tuple[str, ...]
    require: tuple[str, ...]
    spares: int


def layout_request(
    recipe: Recipe, axes: Mapping[str, int], traffic: Mapping[str, float] | None
) -> LayoutRequest:
    """Turn a recipe whose degrees are known into a request. `traffic`: bytes per step by axis."""
    spec = recipe.parallelism
    return LayoutRequest(
        axes=axes,
        ep=spec.ep or 1,
        etp=spec.etp or 1,
        sp=spec.sp,
        traffic=traffic,
        allow_cross_node_tp=spec.allow_cross_node_tp,
        allow_pcie_tp=spec.allow_pcie_tp,
        strict_node=spec.strict_node,
        linear=recipe.task == "script",
        **node_choice(recipe),
    )


def request_of(plan: Plan) -> LayoutRequest:
    """The request that a plan's layout answers."""
    return layout_request(plan.recipe, plan.layout.axes, plan.time.get("bytes_per_step"))


def node_choice(recipe: Recipe) -> NodeChoice:
    """What the recipe says of single nodes, lists of names expanded."""
    placement = recipe.placement
    if placement is None:
        return {"exclude": (), "require": (), "spares": 0}
    return {
        "exclude": _names(placement.exclude, f"{recipe.source}: placement.exclude"),
        "require": _names(placement.require, f"{recipe.source}: placement.require"),
        "spares": placement.spares,
    }


def _names(lists: tuple[str, ...], where: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for text in lists for name in expand_hostlist(text, where)))
