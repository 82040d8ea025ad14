"""Degrees: how many ways each axis splits the job, and the checks that need nothing but numbers.

How degrees that the recipe leaves out are found is in `parctl.planner.infer`.
"""

from dataclasses import dataclass, replace
from math import prod

from parctl.errors import UsageError
from parctl.recipes.spec import AXES, ParallelismSpec, Recipe
from parctl.topology.placement.request import product_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Degrees:
    """Every degree is known; 1 means that the axis splits nothing."""

    pp: int = 1
    dp: int = 1
    fsdp: int = 1
    cp: int = 1
    operator: int = 1
    tp: int = 1
    ep: int = 1  # carved out of dp x fsdp x cp
    etp: int = 1  # how many ways tensor parallelism splits one expert

    @property
    def world_size(self) -> int:
        return self.pp * self.dp * self.fsdp * self.cp * self.operator * self.tp

    @property
    def num_data_ranks(self) -> int:
        """Ranks that read different sequences."""
        return self.dp * self.fsdp

    def of(self, axis: str) -> int:
        degree: int = getattr(self, axis)
        return degree


def given_degrees(spec: ParallelismSpec) -> dict[str, int]:
    """The mesh axes whose degree the recipe states, in the recipe's order of axes."""
    return {axis: degree for axis in spec.order if (degree := getattr(spec, axis)) is not None}


def named_axes(spec: ParallelismSpec) -> tuple[str, ...]:
    """The mesh axes that the recipe names, with or without a degree, outermost first."""
    return tuple(axis for axis in spec.order if getattr(spec, axis) != 1)


def devices_asked_for(spec: ParallelismSpec) -> int | None:
    """The product of the degrees when all of them are given, else None: the cluster decides."""
    if spec.auto or any(getattr(spec, axis) is None for axis in AXES):
        return None
    return prod(given_degrees(spec).values())


def with_degrees(spec: ParallelismSpec, degrees: Degrees) -> ParallelismSpec:
    """Write every degree into the spec; `text` stays as the user wrote it."""
    return replace(
        spec,
        auto=False,
        pp=degrees.pp,
        dp=degrees.dp,
        fsdp=degrees.fsdp,
        cp=degrees.cp,
        operator=degrees.operator,
        tp=degrees.tp,
        ep=degrees.ep,
        etp=degrees.etp,
    )


def check_batch(recipe: Recipe, degrees: Degrees) -> None:
    """Raise UsageError unless the global batch divides into micro-batches on every data rank."""
    train = recipe.train
    if train is None:
        return
    step = train.micro_batch * degrees.num_data_ranks
    if train.global_batch % step == 0:
        return
    factors = {"micro_batch": train.micro_batch, "dp": degrees.dp, "fsdp": degrees.fsdp}
    below = train.global_batch // step * step
    nearest = f"{below} or {below + step}" if below else f"{step}"
    raise UsageError(
        f"{recipe.source}: train.global_batch = {train.global_batch}, expected a multiple of "
        f"{product_text(factors)}",
        hint=f"set train.global_batch to {nearest}",
    )


def num_micro_batches(recipe: Recipe, degrees: Degrees) -> int:
    """How many micro-batches one rank runs per optimizer step."""
    assert recipe.train is not None
    return max(1, recipe.train.global_batch // (recipe.train.micro_batch * degrees.num_data_ranks))
