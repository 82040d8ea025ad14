"""From the mapping form of `parallelism` (also what the shorthand reads as) to `ParallelismSpec`.

The one idea: an axis that has one member is no axis. Whatever belongs to an absent axis (the
schedule of PP1, the ZeRO stage without fsdp) takes its neutral value, so two recipes that mean the
same are equal.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from parctl.recipes.shorthand import (
    DEFAULT_VIRTUAL_STAGES,
    FIXED_VIRTUAL_STAGES,
    INFER,
    SP_HINT,
    format_form,
)
from parctl.recipes.spec import AXES, ParallelismSpec, Schedule

DEGREES = (*AXES, "ep", "etp")
FLAGS = ("allow_cross_node_tp", "allow_pcie_tp", "strict_node")
Fault = tuple[str, str, str]  # key, message, hint


def check_parallelism(values: Mapping[str, Any]) -> list[Fault]:
    """Check what the mapping says against itself. Single values have been checked before."""
    faults: list[Fault] = []
    named = [axis for axis in DEGREES if axis in values]
    if values.get("auto"):
        extra = [*named, *(key for key in ("sp", "layer") if key in values)]
        return [
            (key, f"found `{key}` beside `auto`, which picks every degree", "keep one of the two")
            for key in extra
        ]
    if values.get("sp") and "tp" not in values:
        faults.append(
            ("sp", "SP without TP: there is no TP group to split activations in", SP_HINT)
        )
    for key, axis in (("schedule", "pp"), ("virtual_stages", "pp"), ("layer", "pp"),
                      ("schedule_file", "pp"),
                      ("expert_placement", "ep"), ("expert_load_file", "ep"),
                      ("cp_kind", "cp"), ("zero_stage", "fsdp"), ("etp", "ep"),
                      ("prefetch", "fsdp"), ("reshard", "fsdp")):  # fmt: skip
        if values.get(key) and axis not in values:
            message = f"found `{key}`, but the axis it belongs to, {axis}, is not named"
            faults.append((key, message, f"add `{axis}`, or remove `{key}`"))
    schedule = values.get("schedule", "1f1b")
    fixed = FIXED_VIRTUAL_STAGES.get(schedule)
    virtual = values.get("virtual_stages")
    if virtual is not None and fixed is not None and virtual != fixed:
        message = f"found {virtual} virtual stages, but {schedule} has {fixed} per rank"
        hint = f"remove it, or use `interleaved-1f1b:{virtual}`"
        faults.append(("virtual_stages", message, hint))
    if virtual == 1 and schedule == "interleaved-1f1b":
        message = "found 1 virtual stage, but interleaved-1f1b needs at least 2 per rank"
        faults.append(("virtual_stages", message, "write `1f1b`, or `interleaved-1f1b:2`"))
    if values.get("layer") and ("schedule" in values or (virtual or 1) > 1):
        key = "schedule" if "schedule" in values else "virtual_stages"
        message = "naive layer placement runs one stage at a time: it has no schedule"
        faults.append((key, message, "use PP in place of LAYER for a schedule"))
    if "schedule_file" in values:
        faults += [
            (key, f"found `{key}` beside `schedule_file`, which says it", "keep one of the two")
            for key in ("schedule", "virtual_stages", "layer")
            if key in values
        ]
    balanced = values.get("expert_placement") == "load-balanced"
    if balanced and "expert_load_file" not in values:
        message = "load-balanced placement, but no `expert_load_file`"
        hint = "name the `expert_load.json` of an earlier run, or use round-robin"
        faults.append(("expert_placement", message, hint))
    if "expert_load_file" in values and not balanced:
        message = "found `expert_load_file`, which nothing but load-balanced placement reads"
        faults.append(("expert_load_file", message, "add `expert_placement: load-balanced`"))
    return faults + _order_faults(values)


def _order_faults(values: Mapping[str, Any]) -> list[Fault]:
    order = values.get("order")
    if order is None:
        return []
    hint = f"list the axes in use outermost first; all of them: [{', '.join(AXES)}]"
    twice = sorted({axis for axis in order if order.count(axis) > 1})
    if twice:
        return [("order", f"names {', '.join(twice)} more than once", hint)]
    used = [axis for axis in AXES if axis in values and values[axis] != 1]
    missing = [axis for axis in (AXES if values.get("auto") else used) if axis not in order]
    if missing:
        return [("order", f"leaves out {', '.join(missing)}", hint)]
    return []


def build_parallelism(values: Mapping[str, Any]) -> ParallelismSpec:
    """Build the spec from checked values.

    >>> build_parallelism({"tp": 8, "sp": True, "fsdp": "auto"}).text
    'TP8+SP+FSDP'
    """
    degree = {axis: _degree(values, axis) for axis in DEGREES}
    has_pipeline, has_context = degree["pp"] != 1, degree["cp"] != 1
    schedule: Schedule = values.get("schedule", "1f1b") if has_pipeline else "1f1b"
    default_stages = DEFAULT_VIRTUAL_STAGES.get(schedule, 1)
    order = tuple(values.get("order", AXES))
    spec = ParallelismSpec(
        text="",
        auto=bool(values.get("auto")),
        tp=degree["tp"],
        sp=bool(values.get("sp")) and degree["tp"] != 1,
        pp=degree["pp"],
        dp=degree["dp"],
        fsdp=degree["fsdp"],
        cp=degree["cp"],
        ep=degree["ep"],
        etp=degree["etp"] if degree["ep"] != 1 else 1,
        expert_placement=values.get("expert_placement", "block"),
        expert_load=None,
        layer=bool(values.get("layer")) and has_pipeline,
        operator=values.get("operator", 1),
        zero_stage=values.get("zero_stage", 3) if degree["fsdp"] != 1 else 0,
        grad_sync=values.get("grad_sync", "auto"),
        prefetch=values.get("prefetch", 1),
        reshard=values.get("reshard", "auto"),
        cp_kind=values.get("cp_kind", "ring") if has_context else "ring",
        schedule=schedule,
        virtual_stages=values.get("virtual_stages", default_stages) if has_pipeline else 1,
        schedule_table=None,
        order=tuple(axis for axis in AXES if axis not in order) + order,
        allow_cross_node_tp=bool(values.get("allow_cross_node_tp")),
        allow_pcie_tp=bool(values.get("allow_pcie_tp")),
        strict_node=bool(values.get("strict_node")),
    )
    return replace(spec, text=format_form(spec))


def _degree(values: Mapping[str, Any], axis: str) -> int | None:
    degree = values.get(axis, 1)
    return None if degree == INFER else degree
