"""Search a recipe's space on a cluster: from recipe and topology to what was found.

The links are those that a layout would give: a probe is laid out once, and its proofs are read.
"""

from dataclasses import replace
from difflib import get_close_matches

from parctl.errors import CannotPlaceError, UsageError
from parctl.planner.devices import Devices, survey
from parctl.planner.request import layout_request, node_choice
from parctl.planner.search.best_first import Search
from parctl.planner.search.choice import FIELDS, RECOMPUTES, SCHEDULES
from parctl.planner.search.costs import Costs
from parctl.planner.search.found import Found
from parctl.planner.search.space import Kept, Space
from parctl.planner.time.estimate import fabric_of, not_modelled, slowest
from parctl.planner.time.job import Fabric
from parctl.recipes.spec import Recipe
from parctl.topology.model import Topology
from parctl.topology.placement import largest_tp, lay_out
from parctl.topology.placement.available import available

WORDS = {"zero": "zero_stage", "mb": "micro_batch", "v": "virtual_stages"}  # shorter names
NAMED = {"schedule": SCHEDULES, "recompute": RECOMPUTES, "cp_kind": ("ring", "ulysses")}


def search(
    recipe: Recipe,
    topology: Topology,
    *,
    keep: Kept,
    max_devices: int | None = None,
    top: int = 8,
) -> Found:
    """Find the fastest ways to run `recipe` on `topology`.

    Raises UsageError where time cannot be predicted, since nothing could be ranked then.
    """
    space, fabric = survey_space(recipe, topology, keep=keep, max_devices=max_devices)
    return Search(costs=costs_of(space, fabric), top=top).run()


def survey_space(
    recipe: Recipe, topology: Topology, *, keep: Kept, max_devices: int | None
) -> tuple[Space, Fabric | None]:
    """What can be chosen on a cluster, and its links; None where their speed is not known."""
    if recipe.model is None or recipe.train is None:
        raise UsageError(
            f"{recipe.source}: task: {recipe.task} has no degrees to search for",
            hint="the search is for `task: train`",
        )
    spec = recipe.parallelism
    usable = available(topology, **node_choice(recipe))
    devices = survey(usable, strict_node=spec.strict_node, allow_pcie_tp=spec.allow_pcie_tp)
    most = largest_tp(
        usable,
        allow_pcie_tp=spec.allow_pcie_tp,
        allow_cross_node_tp=spec.allow_cross_node_tp,
        strict_node=spec.strict_node,
    )
    space = Space(
        recipe=recipe, devices=devices, largest_tp=most, max_devices=max_devices, keep=keep
    )
    return space, links(recipe, topology, devices, most)


def links(recipe: Recipe, topology: Topology, devices: Devices, most_tp: int) -> Fabric | None:
    """The links of a cluster as a layout of all its devices proves them."""
    product = slowest(devices)
    if product is None:
        return None
    tp = max(1, most_tp)
    spec = replace(recipe.parallelism, ep=1, etp=1)
    axes = {"fsdp": max(1, devices.usable(tp) // tp), "tp": tp}
    try:
        layout = lay_out(layout_request(replace(recipe, parallelism=spec), axes, None), topology)
    except CannotPlaceError:
        axes = {"fsdp": devices.count}
        layout = lay_out(layout_request(replace(recipe, parallelism=spec), axes, None), topology)
    return fabric_of(layout, devices, product)


def costs_of(space: Space, fabric: Fabric | None) -> Costs:
    """Raises UsageError where the time of a step cannot be predicted."""
    product = slowest(space.devices)
    reason = not_modelled(space.recipe, space.devices, product)
    if reason is not None or product is None or fabric is None:
        raise UsageError(
            f"{space.recipe.source}: nothing to rank by: {reason or 'the links are not known'}",
            hint="name devices whose speed is known, as in `--cluster h100:16x8`",
        )
    return Costs(space=space, product=product, fabric=fabric)


def read_keep(words: list[str]) -> Kept:
    """Read `--keep tp=8`. Raises UsageError for a name or a value that no choice has."""
    kept: dict[str, int | str] = {}
    for word in words:
        name, equals, value = (part.strip() for part in word.partition("="))
        name = WORDS.get(name, name)
        if name not in FIELDS or not equals:
            near = get_close_matches(name, (*FIELDS, *WORDS), n=1)
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
