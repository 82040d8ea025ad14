"""`parallelism: auto`: the search decides, and the plan says what else it looked at.

It decides what belongs to `parallelism`. Micro-batch and recompute stay as the recipe has them
while anything fits with them; where nothing does, they are searched, too, and the plan says so.
"""

from dataclasses import replace

from parctl.planner.degrees import named_axes
from parctl.planner.devices import Devices
from parctl.planner.resolution import Resolution
from parctl.planner.search.best_first import Search
from parctl.planner.search.choice import named
from parctl.planner.search.costs import Costs, Pace
from parctl.planner.search.found import Found
from parctl.planner.search.space import Kept, Space
from parctl.recipes.spec import Recipe

MOST_TOLD = 5  # other sets of axes that the plan names; `parctl plan --search` shows all


def auto_by_search(
    recipe: Recipe, devices: Devices, largest_tp: int, pace: Pace
) -> Resolution | None:
    """Take the fastest that fits. None: nothing does."""
    train = recipe.train
    assert train is not None, "without a step there is no pace"
    explain: list[str] = []
    own: Kept = {"micro_batch": train.micro_batch, "recompute": train.recompute}
    for keep in (own, {}):
        space = Space(
            recipe=recipe, devices=devices, largest_tp=largest_tp, max_devices=None, keep=keep
        )
        found = Search(costs=Costs(space=space, pace=pace), top=1).run(front=False)
        if found.best is not None:
            return _resolution(recipe, found, explain)
        explain.append(
            f"auto: with micro-batch {train.micro_batch} and recompute {train.recompute} nothing "
            "fits: both are searched, too"
        )
    return None


def _resolution(recipe: Recipe, found: Found, explain: list[str]) -> Resolution:
    best = found.best
    assert best is not None
    degrees, spec = best.choice.degrees, best.recipe.parallelism
    explain = [
        *explain,
        f"auto: {best.text}: the fastest that fits, {best.seconds:,.3g} s per step (predicted)",
    ]
    others = [form for form in found.forms if form.axes != best.choice.model_axes]
    explain += [f"auto: not {form.axes}: {found.form_text(form)}" for form in others[:MOST_TOLD]]
    # when gradients are exchanged is settled once the ranks have their devices
    written = replace(spec, text=recipe.parallelism.text, grad_sync=recipe.parallelism.grad_sync)
    return Resolution(
        recipe=replace(best.recipe, parallelism=written),
        degrees=degrees,
        axes={axis: degrees.of(axis) for axis in named_axes(named(spec))} or {"dp": 1},
        explain=tuple(explain),
    )
