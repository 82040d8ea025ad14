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

Where no data axis is left open, the first open one of pp, cp, tp takes the rest. `auto` is the
first of `AUTO_FORMS` that fits; it is a rule, not a search.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import gcd, prod

from parctl.errors import CannotPlaceError, ParctlError, UsageError
from parctl.planner.degrees import (
    Degrees,
    check_batch,
    given_degrees,
    named_axes,
    with_degrees,
)
from parctl.planner.devices import Devices
from parctl.planner.memory import USABLE_FRACTION, Memory, estimate_memory, unsharded_state_bytes
from parctl.planner.sizes import size_text
from parctl.recipes.spec import ModelSpec, ParallelismSpec, Recipe
from parctl.topology.request import product_text

MOST_UNEVEN = 1.15  # heaviest stage against the mean, in layers
AUTO_FORMS = (("dp",), ("fsdp",), ("tp", "fsdp"), ("tp", "pp", "fsdp"))  # `ep` joins in MoE models


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """All degrees, and why they are what they are."""

    recipe: Recipe  # with every degree written into `parallelism`
    degrees: Degrees
    axes: Mapping[str, int]  # mesh axes that the recipe names, outermost first
    explain: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What the rules look at."""

    recipe: Recipe
    devices: Devices
    largest_tp: int
    rest: tuple[str, ...]  # the axis that takes the rest; (dp, fsdp) for HSDP; () when none is open

    def filled(self, degrees: Degrees) -> Degrees:
        """Let the data axis take what the other degrees leave, if one is open."""
        axis = self.rest[-1] if self.rest else None
        if axis not in ("dp", "fsdp"):
            return degrees
        return replace(degrees, **{axis: max(1, self.left(degrees))})

    def left(self, degrees: Degrees) -> int:
        """How many times the degrees so far fit into the cluster."""
        return self.devices.usable(degrees.tp) // degrees.world_size

    def memory(self, degrees: Degrees) -> Memory:
        return estimate_memory(
            self.recipe,
            self.filled(degrees),
            device_bytes=self.devices.memory_bytes,
            kind=self.devices.kind,
        )

    def fits(self, degrees: Degrees) -> bool:
        """Whether the job fits; unknown memory counts as enough, and is said in the plan."""
        return self.memory(degrees).fits is not False


def resolve_degrees(recipe: Recipe, devices: Devices, *, largest_tp: int) -> Resolution:
    """Find every degree of `recipe` on a cluster whose hard rule allows tp up to `largest_tp`."""
    if recipe.parallelism.auto:
        return _resolve_auto(recipe, devices, largest_tp)
    spec = recipe.parallelism
    given = given_degrees(spec)
    if prod(given.values()) > devices.count:
        raise CannotPlaceError(
            f"{product_text(given)}, cluster has {devices.text(devices.count)}",
            hint="lower a degree, or leave the number of one axis out: it follows from the cluster",
        )
    open_axes = [axis for axis in ("tp", "cp", "pp", "fsdp", "dp") if getattr(spec, axis) is None]
    job = _Job(recipe=recipe, devices=devices, largest_tp=largest_tp, rest=_rest(open_axes))
    model_axes = [axis for axis in open_axes if axis in ("tp", "cp", "pp")]
    if recipe.model is None and [axis for axis in model_axes if axis not in job.rest]:
        raise UsageError(
            f"{recipe.source}: parallelism = {spec.text}: without a model nothing says how large "
            f"{' and '.join(model_axes)} should be",
            hint="give every degree but one, as in `TP8+DP`",
        )
    degrees = Degrees(**given, ep=spec.ep or 1, etp=spec.etp or 1)
    explain: list[str] = []
    rules = {"tp": _tensor_degree, "cp": _context_degree, "pp": _pipeline_degree}
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
        degrees, why = _hybrid_degrees(job, degrees)
        explain.append(why)
    if spec.ep is None:
        size, why = _expert_degree(job, degrees)
        degrees = replace(degrees, ep=size)
        explain.append(f"ep = {size}: {why}")
    check_batch(recipe, degrees)
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
    return f"takes the rest of {everything} / {_factors(spec, degrees)}"


def _factors(spec: ParallelismSpec, degrees: Degrees) -> str:
    return product_text({axis: degrees.of(axis) for axis in spec.order}).rpartition(" = ")[0]


def _resolved(recipe: Recipe, degrees: Degrees) -> Recipe:
    return replace(recipe, parallelism=with_degrees(recipe.parallelism, degrees))


def _tensor_degree(job: _Job, degrees: Degrees, reserve: int) -> tuple[int, str]:
    model = job.recipe.model
    most = job.devices.count // (degrees.world_size * reserve)
    allowed = _tensor_candidates(job, min(job.largest_tp, most))
    if not allowed and job.largest_tp < 2 <= job.devices.largest_island:
        # no link is good enough: go on as if one were, and the layout refuses with the reason
        allowed = _tensor_candidates(job, min(job.devices.largest_island, most))
    if not allowed:
        raise CannotPlaceError(
            f"tp needs a degree of at least 2 that suits {_shape_text(model)}: one full mesh holds "
            f"{job.largest_tp}, the other axes leave {most} of "
            f"{job.devices.text(job.devices.count)}",
            hint="leave TP out of `parallelism`, or give its degree",
        )
    largest = allowed[-1]
    if model is None or not job.rest:
        return largest, "the largest that the hard rule and the other axes allow"
    device = job.devices.memory_bytes
    if device is None:
        return allowed[0], "the smallest, since the memory of the devices is unknown"
    room = int(device * USABLE_FRACTION)
    for size in allowed:
        state = unsharded_state_bytes(job.recipe, replace(degrees, tp=size))
        if state <= room:
            return size, (
                f"the smallest from 2 on at which the training state, {size_text(state)} per rank "
                f"before the data axes share it, fits {size_text(room)} of usable memory"
            )
    state = unsharded_state_bytes(job.recipe, replace(degrees, tp=largest))
    return largest, (
        f"the largest that the hard rule ({job.largest_tp}) and the heads allow; the training "
        f"state, {size_text(state)} per rank before the data axes share it, does not fit "
        f"{size_text(room)} at any degree"
    )


def _tensor_candidates(job: _Job, most: int) -> list[int]:
    model, island = job.recipe.model, job.devices.largest_island
    whole = [size for size in range(2, most + 1) if island % size == 0 or size % island == 0]
    return [size for size in whole if model is None or _divides(model, size)]


def _divides(model: ModelSpec, tp: int) -> bool:
    kv_heads = model.num_kv_heads
    return (
        model.num_heads % tp == 0
        and (kv_heads % tp == 0 or tp % kv_heads == 0)
        and model.ffn_dim % tp == 0
    )


def _shape_text(model: ModelSpec | None) -> str:
    if model is None:
        return "the program"
    return f"{model.name} ({model.num_heads} heads, {model.num_kv_heads} KV heads)"


def _context_degree(job: _Job, degrees: Degrees, reserve: int) -> tuple[int, str]:
    train = job.recipe.train
    most = job.left(degrees) // reserve
    allowed = [
        size
        for size in (2**power for power in range(1, max(1, most).bit_length()))
        if train is None or train.seq_len % (2 * size * degrees.tp) == 0
    ]
    if not allowed:
        raise CannotPlaceError(
            f"cp needs 2 or more ranks, and the other axes leave {most}"
            if most < 2 or train is None
            else f"cp: train.seq_len = {train.seq_len} does not divide into 2 x cp(2) x "
            f"tp({degrees.tp}) = {4 * degrees.tp} parts",
            hint="leave CP out of `parallelism`, or lower another degree",
        )
    if not job.rest and reserve == 1:
        return allowed[-1], "takes the rest, as a power of two"
    for size in allowed:
        if job.fits(replace(degrees, cp=size)):
            return size, "the smallest power of two from 2 on at which the job fits"
    return allowed[-1], "the largest power of two possible; the job fits at none"


def _pipeline_degree(job: _Job, degrees: Degrees, reserve: int) -> tuple[int, str]:
    model, spec = job.recipe.model, job.recipe.parallelism
    left = job.left(degrees)
    layers = model.num_layers if model else left
    allowed = [
        size
        for size in range(2, min(left, layers // spec.virtual_stages) + 1)
        if -(-layers // size) * size <= MOST_UNEVEN * layers
    ]
    if not allowed:
        raise CannotPlaceError(
            f"pp needs 2 or more stages, and {_shape_text(model)} has {layers} layers on "
            f"{left} x {_factors(spec, degrees)} ranks",
            hint="leave PP out of `parallelism`, or lower another degree",
        )
    allowed = [size for size in allowed if left % size == 0] or allowed
    if not job.rest or model is None:
        return allowed[-1], f"takes the rest, with {layers} layers dealt out"
    for size in allowed:
        if job.fits(replace(degrees, pp=size)):
            return size, "the smallest number of stages from 2 on at which the job fits"
    size = min(allowed, key=lambda size: job.memory(replace(degrees, pp=size)).worst.total)
    return size, "the number of stages that needs least memory; the job fits at none"


def _hybrid_degrees(job: _Job, degrees: Degrees) -> tuple[Degrees, str]:
    left = max(1, job.left(degrees))
    mesh = max(1, job.devices.largest_island // (degrees.tp * degrees.cp))
    candidates = [size for size in _divisors(left) if size >= min(mesh, left)]
    for size in candidates:
        found = replace(degrees, fsdp=size, dp=left // size)
        if job.recipe.model is None or _Job.fits(replace(job, rest=()), found):
            why = f"fills what tp x cp leave of one NVLink mesh or node ({mesh}) and fits"
            return found, f"fsdp = {size}, dp = {found.dp}: the smallest fsdp that {why}"
    return replace(degrees, fsdp=left), f"fsdp = {left}, dp = 1: the job does not fit with less"


def _expert_degree(job: _Job, degrees: Degrees) -> tuple[int, str]:
    model = job.recipe.model
    assert model is not None and model.moe is not None, "the loader refuses ep without experts"
    ranks, experts = degrees.dp * degrees.fsdp * degrees.cp, model.moe.num_experts
    allowed = _divisors(gcd(ranks, experts))
    inside = [size for size in allowed if size * degrees.tp <= max(1, job.devices.largest_island)]
    job = replace(job, rest=())
    if inside and inside[-1] > 1 and job.fits(replace(degrees, ep=inside[-1])):
        return inside[-1], (
            f"the largest divisor of {experts} experts and {ranks} data ranks that stays with its "
            f"tp group inside one NVLink mesh or node of {job.devices.largest_island}"
        )
    return allowed[-1], f"the largest divisor of {experts} experts and {ranks} data ranks"


def _resolve_auto(recipe: Recipe, devices: Devices, largest_tp: int) -> Resolution:
    """Take the first form of `AUTO_FORMS` that fits, else the last that can be placed."""
    if recipe.model is None:
        raise UsageError(
            f"{recipe.source}: parallelism: auto needs a model to look at",
            hint="name the axes, as in `DP`",
        )
    explain: list[str] = []
    last: Resolution | None = None
    for form in AUTO_FORMS:
        axes = (*form, "ep") if recipe.model.moe and form != ("dp",) else form
        name = "+".join(axis.upper() for axis in axes)
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
        try:
            found = resolve_degrees(
                replace(recipe, parallelism=spec), devices, largest_tp=largest_tp
            )
        except ParctlError as error:
            explain.append(f"auto: not {name}: {error.message}")
            continue
        last = found
        job = _Job(recipe=found.recipe, devices=devices, largest_tp=largest_tp, rest=())
        worst = job.memory(found.degrees).worst.total
        if job.fits(found.degrees):
            chosen = f"auto: {name}: the first form that fits, with {size_text(worst)} per rank"
            return replace(found, explain=(*explain, chosen, *found.explain))
        explain.append(f"auto: not {name}: needs {size_text(worst)} per rank")
    if last is None:
        raise CannotPlaceError(
            "auto: no form can be placed\n" + "\n".join(explain),
            hint="give the degrees, as in `TP8+SP+FSDP16`",
        )
    return replace(last, explain=(*explain, "auto: no form fits; this is the last", *last.explain))


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
