"""What would make a job that makes tokens fit: other degrees on the same devices, else on how many.

In this order: half of the replicas given to tp, then to pp, as far as the hard rule and the model
allow; a narrower type of numbers; a shorter context, which only helps when the weights fit.
"""

from collections.abc import Iterator
from dataclasses import replace

from parctl.planner.degrees import Degrees
from parctl.planner.inference import InferenceMemory, estimate_inference_memory
from parctl.planner.plan import Plan
from parctl.planner.rules import tp_divides
from parctl.recipes.spec import AXES, Recipe

LEAST_CONTEXT = 256  # tokens; a shorter one is no advice
MOST_DEVICES = 4096


def inference_advice(plan: Plan) -> str:
    """Say in words what would fit, the mildest first."""
    for recipe, degrees, option in changes(plan):
        if memory_of(plan, recipe, degrees).fits:
            return f"`--set {option}` fits"
    for degrees in larger(plan):
        if memory_of(plan, plan.recipe, degrees).fits:
            return f"`{form(degrees)}` on {degrees.world_size:,} such devices fits"
    return "no change of one field fits here"


def changes(plan: Plan) -> Iterator[tuple[Recipe, Degrees, str]]:
    """Yield recipes that differ in one field, for as many devices."""
    recipe, degrees = plan.recipe, degrees_of(plan)
    spec, model = recipe.inference, recipe.model
    assert spec is not None and model is not None
    moved = degrees
    while moved.dp % 2 == 0:
        moved = replace(moved, dp=moved.dp // 2)
        grow = degrees.dp // moved.dp
        for wider in (replace(moved, tp=degrees.tp * grow), replace(moved, pp=degrees.pp * grow)):
            if allowed(plan, wider):
                yield recipe, wider, f"parallelism={form(wider)}"
    if spec.precision in ("fp32", "fp64"):
        yield (
            replace(recipe, inference=replace(spec, precision="bf16")),
            degrees,
            "inference.precision=bf16",
        )
    context = spec.max_context // 2
    while context >= LEAST_CONTEXT:
        shorter = replace(spec, max_context=context)
        yield replace(recipe, inference=shorter), degrees, f"inference.max_context={context}"
        context //= 2


def larger(plan: Plan) -> Iterator[Degrees]:
    """Yield degrees for more devices: tp up to the hard rule, then stages."""
    degrees = replace(degrees_of(plan), dp=1)
    while degrees.world_size * 2 <= MOST_DEVICES:
        wider, deeper = (
            replace(degrees, tp=degrees.tp * 2),
            replace(degrees, pp=degrees.pp * 2),
        )
        if allowed(plan, wider):
            degrees = wider
        elif allowed(plan, deeper):
            degrees = deeper
        else:
            return
        yield degrees


def allowed(plan: Plan, degrees: Degrees) -> bool:
    model = plan.recipe.model
    assert model is not None
    largest: int = plan.topology["largest_tp"]
    return (
        degrees.tp <= largest and tp_divides(model, degrees.tp) and degrees.pp <= model.num_layers
    )


def memory_of(plan: Plan, recipe: Recipe, degrees: Degrees) -> InferenceMemory:
    return estimate_inference_memory(
        recipe,
        degrees,
        device_bytes=plan.memory["device_bytes"],
        kind=plan.memory["kind"],
    )


def degrees_of(plan: Plan) -> Degrees:
    spec = plan.recipe.parallelism
    return Degrees(**{axis: getattr(spec, axis) or 1 for axis in (*AXES, "ep", "etp")})


def form(degrees: Degrees) -> str:
    """Write degrees as a shorthand.

    >>> form(Degrees(dp=2, tp=8))
    'DP2+TP8'
    """
    names = ("dp", "tp", "pp", "cp", "ep")
    sizes = {name: degrees.of(name) for name in names}
    return "+".join(f"{name.upper()}{size}" for name, size in sizes.items() if size > 1) or "DP1"
