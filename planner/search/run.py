"""Search a recipe's space on a cluster: from recipe and topology to what was found.

The links are those that a layout would give: a probe is laid out once, and its proofs are read.
"""

from dataclasses import replace
from difflib import get_close_matches
from typing import get_args

from parctl.errors import CannotPlaceError, UsageError
from parctl.planner.devices import Devices, survey
from parctl.planner.request import layout_request, node_choice
from parctl.planner.search.best_first import Search
from parctl.planner.search.choice import FIELDS, RECOMPUTES
from parctl.planner.search.costs import Costs, Pace
from parctl.planner.search.found import Found
from parctl.planner.search.space import Kept, Space
from parctl.planner.time.calibration import Calibration
from parctl.planner.time.constants import FITTED
from parctl.planner.time.estimate import fabric_of, not_modelled, slowest
from parctl.recipes.spec import Recipe, Schedule
from parctl.topology.model import Topology
from parctl.topology.placement import largest_tp, lay_out
from parctl.topology.placement.available import available

WORDS = {"zero": "zero_stage", "mb": "micro_batch", "v": "virtual_stages"}  # shorter names
NAMED = {"schedule": get_args(Schedule), "recompute": RECOMPUTES, "cp_kind": ("ring", "ulysses")}


def search(
    recipe: Recipe,
    topology: Topology,
    *,
    keep: Kept,
    max_devices: int | None = None,
    top: int = 8,
    calibration: Calibration | None = None,
) -> Found:
    """Find the fastest ways to run `recipe` on `topology`.

    Raises UsageError where time cannot be predicted, since nothing could be ranked then.
    """
    space = survey_space(recipe, topology, keep=keep, max_devices=max_devices)
    pace = pace_of(recipe, topology, space.devices, space.largest_tp, calibration)
    if isinstance(pace, str):
        raise UsageError(
            f"{recipe.source}: nothing to rank by: {pace}",
            hint="name devices whose speed is known, as in `--cluster h100:16x8`",
        )
    return Search(costs=Costs(space=space, pace=pace), top=top).run()


def survey_space(
    recipe: Recipe, topology: Topology, *, keep: Kept, max_devices: int | None
) -> Space:
    """What can be chosen on a cluster. UsageError: the recipe trains no model."""
    if recipe.model is None or recipe.train is None:
        raise UsageError(
            f"{recipe.source}: task: {recipe.task} has no degrees to search for",
            hint="the search is for `task: train`",
        )
    spec = recipe.parallelism
    usable = available(topology, **node_choice(recipe))
    most = largest_tp(
        usable,
        allow_pcie_tp=spec.allow_pcie_tp,
        allow_cross_node_tp=spec.allow_cross_node_tp,
        strict_node=spec.strict_node,
    )
    return Space(
        recipe=recipe,
        devices=survey(usable, strict_node=spec.strict_node, allow_pcie_tp=spec.allow_pcie_tp),
        largest_tp=most,
        max_devices=max_devices,
        keep=keep,
    )


def pace_of(
    recipe: Recipe,
    topology: Topology,
    devices: Devices,
    most_tp: int,
    calibration: Calibration | None,
) -> Pace | str:
    """How fast a cluster is, its links as a layout of all devices proves them; or why unknown."""
    product = slowest(devices)
    reason = not_modelled(recipe, devices, product)
    if reason is not None or product is None:
        return reason or "the devices are not known"
    tp = max(1, most_tp)
    spec = replace(recipe.parallelism, ep=1, etp=1)
    probe = replace(recipe, parallelism=spec)
    shapes = [{"fsdp": devices.count}]
    if groups := devices.usable(tp) // tp:
        shapes.insert(0, {"fsdp": groups, "tp": tp})
    for axes in shapes:
        try:
            layout = lay_out(layout_request(probe, axes, None), topology)
        except CannotPlaceError:
            continue
        fabric = fabric_of(layout, devices, product)
        if calibration is None:
            return Pace(product=product, fabric=fabric, constants=FITTED)
        return Pace(
            product=product,
            fabric=calibration.fabric(fabric),
            constants=calibration.constants(product),
        )
    return "its devices cannot be laid out"


def read_keep(words: list[str]) -> Kept:
    """Read `--keep tp=8`. Raises UsageError for a name or a value that no choice has."""
    kept: dict[str, int | str] = {}
    for word in words:
        name, equals, value = (part.strip() for part in word.partition("="))
        name = WORDS.get(name, name)
        if name not in FIELDS or not equals:
            near = get_close_matches(name, (*FIELDS, *WORDS), n=1, cutoff=0.5)
            raise UsageError(
                f"--keep {word}: expected NAME=VALUE with a name of {', '.join(FIELDS)}",
                hint=f"did you mean `--keep {near[0]}=...`?" if near else "as in `--keep tp=8`",
            )
        if name in NAMED:
            if value not in NAMED[name]:
                raise UsageError(
                    f"--keep {word}: found `{value}`", hint=f"one of {', '.join(NAMED[name])}"
                )
            kept[name] = value
            continue
        if not value.isdecimal() or (int(value) < 1 and name != "zero_stage"):
            raise UsageError(f"--keep {word}: found `{value}`", hint="a whole number from 1 on")
        kept[name] = int(value)
    return kept
