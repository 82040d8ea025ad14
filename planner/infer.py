"""Find the degrees that a recipe leaves out, by stated rules; every decision is a sentence.

In this order, given degrees first:

1. tp    the smallest degree from 2 on at which the whole training state, split by tp (and by pp
         where it is given), fits one device; the largest that the hard rule and the model's shape
         allow when none does, or when no data axis is there to take the rest. It must divide the
         heads and the MLP, divide or be divided by the KV heads, and leave nothing over of a full
         NVLink mesh.
2. cp    the smallest power of two from 2 on at which the job fits; the largest possible one when
         none does.
3. pp    the smallest number of stages from 2 on at which the job fits, among those that leave no
         device over and no stage more than 15% above the mean; the one that needs least memory
         when none does.
4. fsdp  takes the rest; without it dp does. Where both are left out (HSDP) fsdp is the smallest
         divisor of the rest that fills what tp x cp leave of an NVLink mesh and fits, and dp
         replicates.
5. ep    the largest divisor of the experts that the ranks of dp x fsdp x cp allow inside one NVLink
         mesh, or, when the job does not fit so or no such divisor is there, over all of them.

Where no data axis is left open, the first open one of pp, cp, tp takes the rest. `auto` is what the
search (`parctl.planner.search`) finds fastest; where time cannot be predicted, as on CPUs, it is
the first of `AUTO_FORMS` that fits (of `REPLICA_FORMS` for jobs that make tokens).
"""

from dataclasses import replace
from math import prod

from parctl.errors import CannotPlaceError, ParctlError, UsageError
from parctl.planner.auto import auto_by_search
from parctl.planner.degrees import (
    Degrees,
    check_batch,
    given_degrees,
    named_axes,
    with_degrees,
)
from parctl.planner.devices import Devices
from parctl.planner.resolution import Resolution
from parctl.planner.rules import (
    Job,
    context_degree,
    expert_degree,
    factors_text,
    hybrid_degrees,
    pipeline_degree,
    tensor_degree,
)
from parctl.planner.schedule_rules import check_schedule
from parctl.planner.search.costs import Pace
from parctl.planner.sizes import size_text
from parctl.recipes.spec import ParallelismSpec, Recipe
from parctl.topology.placement.request import product_text

# `sp` comes with `tp`, `ep` joins in models with experts
AUTO_FORMS = (("dp",), ("fsdp",), ("tp", "fsdp"), ("tp", "pp", "fsdp"), ("pp", "fsdp"))
REPLICA_FORMS = (("dp",), ("dp", "tp"), ("dp", "tp", "pp"))  # of jobs that make tokens


def resolve_degrees(
    recipe: Recipe, devices: Devices, *, largest_tp: int, pace: Pace | None = None
) -> Resolution:
    """Find every degree of `recipe` on a cluster whose hard rule allows tp up to `largest_tp`.

    `pace`: what `auto` ranks by; None: the speed of the devices is not known.
    """
    if recipe.parallelism.auto:
        found = auto_by_search(recipe, devices, largest_tp, pace) if pace else None
        return found or _auto_by_rule(recipe, devices, largest_tp)
    spec = recipe.parallelism
    given = given_degrees(spec)
    if prod(given.values()) > devices.count:
        raise CannotPlaceError(
            f"{product_text(given)}, cluster has {devices.text(devices.count)}",
            hint="lower a degree, or leave the number of one axis out: it follows from the cluster",
        )
    open_axes = [axis for axis in ("tp", "cp", "pp", "fsdp", "dp") if getattr(spec, axis) is None]
    job = Job(recipe=recipe, devices=devices, largest_tp=largest_tp, rest=_rest(open_axes))
    model_axes = [axis for axis in open_axes if axis in ("tp", "cp", "pp")]
    if recipe.model is None and model_axes and len(open_axes) > 1:
        raise UsageError(
            f"{recipe.source}: parallelism = {spec.text}: without a model nothing says how large "
            f"{' and '.join(model_axes)} should be",
            hint="give every degree but one, as in `TP8+DP`",
        )
    degrees = Degrees(**given, ep=spec.ep or 1, etp=spec.etp or 1)
    explain: list[str] = []
    rules = {"tp": tensor_degree, "cp": context_degree, "pp": pipeline_degree}
    for number, axis in enumerate(model_axes):
        # every axis still to come is to have at least 2
        size, why = rules[axis](job, degrees, 2 ** (len(model_axes) - number - 1))
        degrees = replace(degrees, **{axis: size})
        explain.append(f"{axis} = {size}: {why}")
    if job.rest in (("fsdp",), ("dp",)):
        why = _rest_text(spec, degrees, devices)
        degrees = job.filled(degrees)
        explain.append(f"{job.rest[0]} = {degrees.of(job.rest[0])}: {why}")
    elif job.rest:
        degrees, why = hybrid_degrees(job, degrees)
        explain.append(why)
    if spec.ep is None:
        size, why = expert_degree(job, degrees)
        degrees = replace(degrees, ep=size)
        explain.append(f"ep = {size}: {why}")
    check_batch(recipe, degrees)
    check_schedule(recipe, degrees)
    return Resolution(
        recipe=_resolved(recipe, degrees),
        degrees=degrees,
        axes={axis: degrees.of(axis) for axis in named_axes(spec)} or {"dp": 1},
        explain=tuple(explain),
    )


def _rest(open_axes: list[str]) -> tuple[str, ...]:
    return tuple(axis for axis in ("dp", "fsdp") if axis in open_axes)


def _rest_text(spec: ParallelismSpec, degrees: Degrees, devices: Devices) -> str:
    everything = devices.text(devices.count)
    if degrees.world_size == 1:
        return f"takes all of {everything}"
    return f"takes the rest of {everything} / {factors_text(spec, degrees)}"


def _resolved(recipe: Recipe, degrees: Degrees) -> Recipe:
    return replace(recipe, parallelism=with_degrees(recipe.parallelism, degrees))


def _auto_by_rule(recipe: Recipe, devices: Devices, largest_tp: int) -> Resolution:
    """Take the first form of `AUTO_FORMS` that fits, else the one that needs least memory."""
    if recipe.model is None:
        raise UsageError(
            f"{recipe.source}: parallelism: auto needs a model to look at",
            hint="name the axes, as in `DP`",
        )
    explain: list[str] = []
    placed: list[tuple[int, Resolution]] = []
    for form in REPLICA_FORMS if recipe.inference else AUTO_FORMS:
        axes = (*form, "ep") if recipe.model.moe and form != ("dp",) else form
        name = "+".join(axis.upper() for axis in axes)
        if "tp" in axes and largest_tp < 2:
            explain.append(f"auto: not {name}: the hard rule leaves no tp group of 2")
            continue
        try:
            found = resolve_degrees(_with_form(recipe, axes), devices, largest_tp=largest_tp)
        except ParctlError as error:
            explain.append(f"auto: not {name}: {error.message}")
            continue
        job = Job(recipe=found.recipe, devices=devices, largest_tp=largest_tp, rest=())
        worst = job.memory(found.degrees).worst.total
        if job.fits(found.degrees):
            chosen = f"auto: {name}: the first form that fits, with {size_text(worst)} per rank"
            return replace(found, explain=(*explain, chosen, *found.explain))
        explain.append(f"auto: not {name}: needs {size_text(worst)} per rank")
        placed.append((worst, found))
    if not placed:
        raise CannotPlaceError(
            "auto: no form can be placed\n" + "\n".join(explain),
            hint="give the degrees, as in `TP8+SP+FSDP16`",
        )
    _, least = min(placed, key=lambda pair: pair[0])
    chosen = "auto: no form fits; this one needs least"
    return replace(least, explain=(*explain, chosen, *least.explain))


def _with_form(recipe: Recipe, axes: tuple[str, ...]) -> Recipe:
    """Name these axes, all degrees open."""
    spec = replace(
        recipe.parallelism,
        auto=False,
        pp=None if "pp" in axes else 1,
        dp=None if "dp" in axes else 1,
        fsdp=None if "fsdp" in axes else 1,
        tp=None if "tp" in axes else 1,
        ep=None if "ep" in axes else 1,
        sp="tp" in axes,
        zero_stage=3 if "fsdp" in axes else 0,
    )
    return replace(recipe, parallelism=spec)
