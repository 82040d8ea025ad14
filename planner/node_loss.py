"""A node is lost at a step: what is lost with it, and where its ranks could go on.

Ranks of one job meet in collectives, so a lost rank stops all of them, and every rank starts again
from the newest complete checkpoint. Where they go is tried in this order::

    same degrees    on the nodes that are left, spares included (late binding)
    fewer ranks     the recipe planned anew on as many of them as it can use
    wait            until the node is back, when neither can be
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from parctl.errors import CannotPlaceError, ParctlError, UsageError
from parctl.planner.make import make_plan
from parctl.planner.plan import Plan
from parctl.planner.request import request_of
from parctl.recipes.spec import Recipe
from parctl.topology.model import Topology
from parctl.topology.placement.late_binding import Binding, rebind

TRIES = 64  # numbers of nodes for which the recipe is planned anew, most first


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLoss:
    node: str
    step: int  # that was under way
    ranks: tuple[int, ...]  # that ran there
    broken: Mapping[str, int]  # axis -> groups that lost a rank
    checkpoint_step: int  # newest complete one; 0: none
    lost_steps: int
    rebound: Binding | None  # the same job on other nodes
    replanned: Plan | None  # the recipe on what is left, when the same job has no place
    refusals: tuple[str, ...]  # why not, in sentences

    @property
    def outcome(self) -> str:
        if self.rebound is not None:
            return "same degrees"
        return "fewer ranks" if self.replanned is not None else "wait"


def lose_node(recipe: Recipe, plan: Plan, topology: Topology, node: str, step: int) -> NodeLoss:
    """Take a node away at a step. `recipe` is the one as written, before degrees were found.

    Raises UsageError for a node that the plan does not use and a step that it does not make.
    """
    train, checkpoint = plan.recipe.train, plan.recipe.checkpoint
    if train is None or checkpoint is None:
        raise UsageError(
            f"recipe {plan.recipe.name} has task: {plan.recipe.task}: it counts no steps",
            hint="a node is lost at a step of `task: train`",
        )
    if not 1 <= step <= train.steps:
        raise UsageError(f"step {step}, but the recipe makes steps 1 to {train.steps:,}")
    ranks = tuple(slot.rank for slot in plan.layout.slots if slot.node == node)
    if not ranks:
        raise UsageError(
            f"the plan uses no node `{node}`",
            hint=f"it uses {plan.topology['nodes'][0]} and {plan.layout.num_nodes - 1:,} more",
        )
    # the step under way is not done yet, so neither is a save behind it
    saved = (step - 1) // checkpoint.every * checkpoint.every if checkpoint.every else 0
    rebound, replanned, refusals = _go_on(recipe, plan, topology, node)
    return NodeLoss(
        node=node,
        step=step,
        ranks=ranks,
        broken=broken_groups(plan, ranks),
        checkpoint_step=saved,
        lost_steps=step - 1 - saved,
        rebound=rebound,
        replanned=replanned,
        refusals=refusals,
    )


def broken_groups(plan: Plan, ranks: tuple[int, ...]) -> dict[str, int]:
    """How many groups of every axis these ranks are in."""
    layout = plan.layout
    place = {rank: position for position, rank in enumerate(layout.ranks)}
    places = [place[rank] for rank in ranks]
    broken: dict[str, int] = {}
    for axes in (layout.axes, layout.expert_axes or {}):
        stride = 1
        counts = {}
        for axis, size in reversed(list(axes.items())):
            if size > 1:
                counts[axis] = len({(at // (stride * size), at % stride) for at in places})
            stride *= size
        broken |= {axis: counts[axis] for axis in axes if axis in counts and axis not in broken}
    return broken


def without_node(topology: Topology, node: str) -> Topology:
    return replace(topology, nodes=tuple(each for each in topology.nodes if each.name != node))


def _go_on(
    recipe: Recipe, plan: Plan, topology: Topology, node: str
) -> tuple[Binding | None, Plan | None, tuple[str, ...]]:
    left = without_node(topology, node)
    refusals = []
    try:
        there = {each.name: None for each in left.nodes}
        return rebind(request_of(plan), plan.layout, there, left), None, ()
    except CannotPlaceError as error:
        refusals.append(error.message)
    most = len(left.nodes)
    for count in range(most, max(0, most - TRIES), -1):
        fewer = replace(left, nodes=left.nodes[:count])
        try:
            replanned = make_plan(recipe, fewer, backend=plan.backend["kind"])
        except ParctlError as error:
            if count == most:
                refusals.append(error.message)
        else:
            if replanned.memory.get("fits") is not False:
                return None, replanned, tuple(refusals)
            if count == most:
                refusals.append("planned anew on what is left, it does not fit")
    return None, None, tuple(refusals)
