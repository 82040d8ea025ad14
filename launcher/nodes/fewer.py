"""The same job on fewer nodes: less data parallelism, everything else as it was.

What a rank holds stays the same size or grows by its share of sharded states; the global batch
stays, so every rank makes more micro-batches of it. A checkpoint does not know the layout, and
training goes on from it.
"""

from dataclasses import replace

from parctl.errors import ParctlError
from parctl.planner.fit import refuse_misfit
from parctl.planner.make import make_plan
from parctl.planner.plan import Plan
from parctl.topology.model import Topology


def plan_for_fewer(
    plan: Plan, topology: Topology, *, min_nodes: int | None
) -> tuple[Plan, tuple[str, ...]] | None:
    """Return the largest plan with fewer replicas that `topology` holds, and how it differs.

    None: none does, or it would use fewer than `min_nodes`.
    """
    spec = plan.recipe.parallelism
    if min_nodes is None or plan.recipe.train is None:
        return None
    # replicas are given up before shards: a shard less makes every other one larger
    axes = [axis for axis in ("dp", "fsdp") if (getattr(spec, axis) or 1) > 1]
    for axis in axes:
        for degree in range(getattr(spec, axis) - 1, 0, -1):
            fewer = replace(spec, dp=degree) if axis == "dp" else replace(spec, fsdp=degree)
            # what the recipe says of single nodes is heeded by who chose those of `topology`
            recipe = replace(plan.recipe, parallelism=fewer, placement=None)
            try:
                smaller = make_plan(recipe, topology, backend=str(plan.backend["kind"]))
                refuse_misfit(smaller)
            except ParctlError:  # the batch does not divide, or so many are not there either
                continue
            if smaller.layout.num_nodes < min_nodes:
                return None
            sentence = (
                f"going on with {axis} {degree} in place of {getattr(spec, axis)}: "
                f"{smaller.layout.num_nodes} nodes are there, {plan.layout.num_nodes} were planned"
            )
            return smaller, (sentence,)
    return None
