"""The rules that find one degree each: how large tp, cp, pp, fsdp and ep should be, and why.

What they are, and in which order they run, is said in `parctl.planner.infer`. A rule sees the
degrees found so far and returns its own with a sentence.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import gcd

from parctl.errors import CannotPlaceError
from parctl.planner.degrees import Degrees
from parctl.planner.devices import Devices
from parctl.planner.inference import InferenceMemory, estimate_inference_memory
from parctl.planner.memory import Memory, estimate_memory, unsharded_state_bytes
from parctl.planner.sizes import size_text
from parctl.planner.staged_memory import USABLE_FRACTION
from parctl.recipes.spec import ModelSpec, ParallelismSpec, Recipe
from parctl.topology.placement.request import product_text

MOST_UNEVEN = 1.15  # heaviest stage against the mean, in layers


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
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

    def memory(self, degrees: Degrees) -> Memory | InferenceMemory:
        estimate = estimate_inference_memory if self.recipe.inference else estimate_memory
        return estimate(
            self.recipe,
            self.filled(degrees),
            device_bytes=self.devices.memory_bytes,
            kind=self.devices.kind,
        )

    def fits(self, degrees: Degrees) -> bool:
        """Whether the job fits; unknown memory counts as enough, and is said in the plan."""
        return self.memory(degrees).fits is not False


def tensor_degree(job: Job, degrees: Degrees, reserve: int) -> tuple[int, str]:
    model = job.recipe.model
    most = job.devices.count // (degrees.world_size * reserve)
    allowed = _candidates(job, min(job.largest_tp, most))
    if not allowed and job.largest_tp < 2 <= job.devices.largest_island:
        # no link is good enough: go on as if one were, and the layout refuses with the reason
        allowed = _candidates(job, min(job.devices.largest_island, most))
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
    if job.recipe.inference is not None:
        return _inference_tensor_degree(job, degrees, allowed)
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


def _inference_tensor_degree(job: Job, degrees: Degrees, allowed: Sequence[int]) -> tuple[int, str]:
    what = "the weights, and keys and values of one longest sequence"
    for size in allowed:
        if job.fits(replace(degrees, tp=size)):
            return size, f"the smallest from 2 on at which {what} fit"
    return allowed[-1], f"the largest that the hard rule and the heads allow; {what} fit at none"


def _candidates(job: Job, most: int) -> list[int]:
    found = tensor_candidates(job.recipe.model, job.devices.largest_island, most)
    if job.recipe.parallelism.sp:
        found = [size for size in found if sp_divides(job.recipe, size)]
    return found


def tensor_candidates(model: ModelSpec | None, island: int, most: int) -> list[int]:
    """Degrees of tp from 2 to `most` that leave nothing over of an NVLink mesh of `island`."""
    whole = [size for size in range(2, most + 1) if island % size == 0 or size % island == 0]
    return [size for size in whole if model is None or tp_divides(model, size)]


def sp_divides(recipe: Recipe, tp: int) -> bool:
    """Whether sp gives every tp rank as many tokens; a vision model is never asked."""
    train, model = recipe.train, recipe.model
    return train is None or model is None or bool(model.vision) or train.seq_len % tp == 0


def tp_divides(model: ModelSpec, tp: int) -> bool:
    """Whether every tp rank gets whole heads, its KV heads or a shared one, and MLP columns."""
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


def context_degree(job: Job, degrees: Degrees, reserve: int) -> tuple[int, str]:
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


def pipeline_degree(job: Job, degrees: Degrees, reserve: int) -> tuple[int, str]:
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
            f"{left} x {factors_text(spec, degrees)} ranks",
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


def hybrid_degrees(job: Job, degrees: Degrees) -> tuple[Degrees, str]:
    left = max(1, job.left(degrees))
    mesh = max(1, job.devices.largest_island // (degrees.tp * degrees.cp))
    candidates = [size for size in divisors(left) if size >= min(mesh, left)]
    for size in candidates:
        found = replace(degrees, fsdp=size, dp=left // size)
        if job.recipe.model is None or Job.fits(replace(job, rest=()), found):
            why = f"fills what tp x cp leave of one NVLink mesh or node ({mesh}) and fits"
            return found, f"fsdp = {size}, dp = {found.dp}: the smallest fsdp that {why}"
    return replace(degrees, fsdp=left), f"fsdp = {left}, dp = 1: the job does not fit with less"


def expert_degree(job: Job, degrees: Degrees) -> tuple[int, str]:
    model = job.recipe.model
    assert model is not None and model.moe is not None, "the loader refuses ep without experts"
    ranks, experts = degrees.dp * degrees.fsdp * degrees.cp, model.moe.num_experts
    allowed = divisors(gcd(ranks, experts))
    inside = [size for size in allowed if size * degrees.tp <= max(1, job.devices.largest_island)]
    job = replace(job, rest=())
    if inside and inside[-1] > 1 and job.fits(replace(degrees, ep=inside[-1])):
        return inside[-1], (
            f"the largest divisor of {experts} experts and {ranks} data ranks that stays with its "
            f"tp group inside one NVLink mesh or node of {job.devices.largest_island}"
        )
    return allowed[-1], f"the largest divisor of {experts} experts and {ranks} data ranks"


def factors_text(spec: ParallelismSpec, degrees: Degrees) -> str:
    return product_text({axis: degrees.of(axis) for axis in spec.order}).rpartition(" = ")[0]


@cache
def divisors(number: int) -> tuple[int, ...]:
    """In ascending order.

    >>> divisors(12)
    (1, 2, 3, 4, 6, 12)
    """
    return tuple(size for size in range(1, number + 1) if number % size == 0)
