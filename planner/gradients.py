"""When a step's gradients are exchanged: after each micro-batch, or once after the last.

The one idea: with sharded states an exchange per micro-batch is what memory asks for, not what the
network likes. Where whole gradients fit beside everything else, they wait for the last one.
"""

from dataclasses import replace

from parctl.planner.degrees import Degrees, num_micro_batches
from parctl.planner.devices import Devices
from parctl.planner.memory import estimate_memory
from parctl.recipes.spec import Recipe


def with_grad_sync(
    recipe: Recipe, degrees: Degrees, devices: Devices
) -> tuple[Recipe, tuple[str, ...]]:
    """Settle `grad_sync: auto` of a recipe with all its degrees.

    Returns the recipe, and a sentence where whole gradients are kept though states are sharded.
    """
    spec = recipe.parallelism
    if recipe.model is None or recipe.train is None or spec.grad_sync != "auto":
        return recipe, ()
    last = replace(recipe, parallelism=replace(spec, grad_sync="last"))
    if spec.zero_stage < 2:
        return last, ()
    each = replace(recipe, parallelism=replace(spec, grad_sync="each"))
    count = num_micro_batches(recipe, degrees)
    if count == 1:
        return each, ()
    memory = estimate_memory(last, degrees, device_bytes=devices.memory_bytes, kind=devices.kind)
    if not memory.fits:
        return each, ()
    return last, (f"grad_sync = last: whole gradients of {count} micro-batches fit",)
