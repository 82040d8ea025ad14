"""Fold a parallel shape onto few ranks: smaller degrees, the same axes.

An axis needs two members to show whether it is right, so every axis starts at 2 and grows back
towards its own degree while ranks are left. Where even twos are too many, the shape is taken in
parts, each of which leaves as few axes out as it can; every pair of axes that fits then meets in
some part::

    DP16+TP4+SP+EP8+ETP4       on 8 ranks   DP4+TP2+SP+EP2+ETP2
    TP8+SP+PP16+CP16+FSDP8     on 8 ranks   without fsdp, without cp, without pp, without tp
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from math import prod

from parctl.errors import UsageError
from parctl.recipes.shorthand import format_form
from parctl.recipes.spec import AXES, ParallelismSpec

GROWTH = ("fsdp", "dp", "tp", "cp", "pp")  # which axis gets spare ranks first


@dataclass(frozen=True, slots=True, kw_only=True)
class Folded:
    """One part of a parallel shape, small enough to run. `degrees` has the axes that are left."""

    parallelism: ParallelismSpec
    degrees: Mapping[str, int]
    left_out: tuple[str, ...]  # axes of the recipe that this part does without

    @property
    def num_ranks(self) -> int:
        return prod(self.degrees.values())

    def changes(self, given: ParallelismSpec) -> dict[str, tuple[int | None, int]]:
        """Degree in the recipe (None: left to be inferred) and here, where the two differ."""
        names = (*AXES, *({"ep", "etp", "operator"} - set(AXES)))
        pairs = {
            name: (getattr(given, name), getattr(self.parallelism, name)) for name in sorted(names)
        }
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def fold(spec: ParallelismSpec, max_ranks: int) -> list[Folded]:
    """Return the parts of `spec` on at most `max_ranks` ranks; one part where everything fits.

    Degrees that the recipe leaves out become 2. Raises UsageError for `auto`, which names no axis.
    """
    if spec.auto:
        raise UsageError(
            "parallelism: auto names no axis that could be folded",
            hint="`--set parallelism=...` with the form that `parctl plan` chose",
        )
    wanted = {axis: size for axis in mesh_axes() if (size := getattr(spec, axis)) != 1}
    parts = []
    for kept in _largest_subsets(tuple(wanted), max_ranks):
        degrees = _grown({axis: wanted[axis] for axis in kept}, max_ranks)
        parts.append(_part(spec, degrees, tuple(axis for axis in wanted if axis not in kept)))
    return parts


def mesh_axes() -> tuple[str, ...]:
    """All axes that multiply to the number of ranks."""
    return AXES if "operator" in AXES else (*AXES, "operator")


def _largest_subsets(axes: tuple[str, ...], max_ranks: int) -> Iterator[tuple[str, ...]]:
    """Yield the sets of axes, as large as can be, that fit with two members each."""
    count = min(len(axes), max(0, max_ranks.bit_length() - 1))
    yield from combinations(axes, count)


def _grown(wanted: Mapping[str, int | None], max_ranks: int) -> dict[str, int]:
    """Give spare ranks to the axes, one step each in turn."""
    degrees = dict.fromkeys(wanted, 2)
    grew = True
    while grew:
        grew = False
        for axis in (*GROWTH, "operator"):
            if axis not in degrees:
                continue
            full = wanted[axis] or 2
            larger = [size for size in range(degrees[axis] + 1, full + 1) if full % size == 0]
            others = prod(degrees.values()) // degrees[axis]
            if larger and others * larger[0] <= max_ranks:
                degrees[axis], grew = larger[0], True
    return degrees


def _part(spec: ParallelismSpec, degrees: dict[str, int], left_out: tuple[str, ...]) -> Folded:
    sizes = {axis: degrees.get(axis, 1) for axis in mesh_axes()}
    expert = _expert_degrees(spec, sizes)
    pipelined, sharded = sizes["pp"] > 1, sizes["fsdp"] > 1
    folded = replace(
        resized(spec, {**sizes, "ep": expert[0], "etp": expert[1]}),
        sp=spec.sp and sizes["tp"] > 1,
        layer=spec.layer and pipelined,
        schedule=spec.schedule if pipelined else "1f1b",
        virtual_stages=min(spec.virtual_stages, 2) if pipelined else 1,
        zero_stage=spec.zero_stage if sharded else 0,
        reshard="auto" if isinstance(spec.reshard, int) and sizes["fsdp"] < 4 else spec.reshard,
        cp_kind=spec.cp_kind if sizes["cp"] > 1 else "ring",
        allow_pcie_tp=True,
        allow_cross_node_tp=True,
    )
    folded = replace(folded, text=format_form(folded))
    return Folded(parallelism=folded, degrees=degrees, left_out=left_out)


def resized(spec: ParallelismSpec, sizes: Mapping[str, int]) -> ParallelismSpec:
    """Write `sizes` into every degree; an axis that is not there gets 1."""
    return replace(
        spec,
        pp=sizes.get("pp", 1),
        dp=sizes.get("dp", 1),
        fsdp=sizes.get("fsdp", 1),
        cp=sizes.get("cp", 1),
        tp=sizes.get("tp", 1),
        ep=sizes.get("ep", 1),
        etp=sizes.get("etp", 1),
        operator=sizes.get("operator", 1),
    )


def _expert_degrees(spec: ParallelismSpec, sizes: Mapping[str, int]) -> tuple[int, int]:
    """Fold ep and etp: as tp where etp was tp, with replicas of experts where there were some."""
    if spec.ep == 1:
        return 1, 1
    outer, tp = sizes["dp"] * sizes["fsdp"] * sizes["cp"], sizes["tp"]
    etp = tp if spec.etp != 1 and tp > 1 else 1
    given = [spec.dp, spec.fsdp, spec.cp, spec.tp, spec.ep, spec.etp]
    known = [size for size in given if size is not None]
    if len(known) < len(given):
        return (outer if outer > 1 else tp // etp), etp
    takes_tp = spec.etp != spec.tp and prod(known[:3]) % known[4] != 0
    pool = outer * tp // etp if takes_tp else outer
    replicas = prod(known[:4]) // (known[4] * (known[5] if spec.etp != 1 else known[3]))
    if replicas > 1 and pool >= 4:
        pool //= 2
    return max(size for size in range(1, min(pool, known[4]) + 1) if pool % size == 0), etp
