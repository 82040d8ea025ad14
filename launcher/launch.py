"""From a recipe to a submitted run: the gates a plan has to pass, then render and submit."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from parctl.launcher.backend import Backend, Manifests, RunRef
from parctl.launcher.backends import get_backend
from parctl.launcher.contexts import resolve_context
from parctl.launcher.run_id import new_run_id
from parctl.planner.plan import Plan
from parctl.recipes.spec import Recipe
from parctl.topology.model import Topology


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Everything that `submit` needs, and nothing has been started yet."""

    backend: Backend
    manifests: Manifests


def plan_here(
    source: str,
    *,
    overrides: Sequence[str],
    num_devices: int | None,
    backend: str | None,
) -> Plan:
    """Load a recipe and plan it for this machine; `backend` is the `-b` flag."""
    from parctl.planner.make import make_plan
    from parctl.recipes.loader import load_recipe

    recipe = load_recipe(source, overrides)
    chosen = resolve_context(backend=backend, recipe_backend=recipe.launch.backend)
    get_backend(chosen.backend)  # refuses a back end that is not built, before any work
    return make_plan(recipe, local_topology(recipe, num_devices), backend=chosen.backend)


def local_topology(recipe: Recipe, num_devices: int | None) -> Topology:
    """This machine; its CPU devices are only slots, as many as the degrees ask for if all do."""
    from parctl.topology.discover import discover

    topology = discover(None, num_devices=num_devices)
    wanted = _product_of_degrees(recipe)
    if num_devices is None and wanted and topology.nodes[0].hardware.kind == "cpu":
        return discover(None, num_devices=wanted)
    return topology


def prepare(plan: Plan, *, run_id: str | None, force: bool) -> Prepared:
    """Check a plan and render it. Raises NotBuiltError, or DoesNotFitError unless `force`."""
    from parctl.planner.fit import refuse_misfit
    from parctl.runtime.supported import refuse_unbuilt

    axes = dict(plan.layout.axes)
    refuse_unbuilt(plan.recipe, {**axes, "ep": (plan.layout.expert_axes or {}).get("ep", 1)})
    if not force:
        refuse_misfit(plan)
    backend = get_backend(plan.backend["kind"])
    return Prepared(
        backend=backend,
        manifests=backend.render(plan, run_id or new_run_id(plan.recipe.name)),
    )


def launch_plan(plan: Plan, *, run_id: str | None = None, force: bool = False) -> RunRef:
    """Submit a plan to its back end."""
    prepared = prepare(plan, run_id=run_id, force=force)
    return prepared.backend.submit(prepared.manifests)


def _product_of_degrees(recipe: Recipe) -> int | None:
    spec = recipe.parallelism
    degrees = (spec.pp, spec.dp, spec.fsdp, spec.cp, spec.tp, spec.operator)
    given = [degree for degree in degrees if degree is not None]
    return prod(given) if len(given) == len(degrees) and not spec.auto else None
