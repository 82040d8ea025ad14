"""From a recipe to a submitted run: the gates a plan has to pass, then render and submit."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

from parctl.errors import UsageError
from parctl.launcher.backend import Backend, Manifests, RunRef
from parctl.launcher.backends import get_backend
from parctl.launcher.contexts import load_settings, resolve_context
from parctl.launcher.local import LocalBackend
from parctl.launcher.run_id import check_run_id, new_run_id
from parctl.planner.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Everything that `submit` needs, and nothing has been started yet."""

    backend: Backend
    manifests: Manifests


@contextmanager
def prepared_launch(
    source: str,
    *,
    overrides: Sequence[str],
    num_devices: int | None,
    backend: str | None,
    run_id: str | None,
    force: bool,
    ahead: bool,
    cluster: str | None = None,
) -> Iterator[Prepared]:
    """Load a recipe, plan it for this machine, check and render it; submit it inside the `with`.

    `backend` is the `-b` flag. `ahead`: let the back end begin while the plan is being made.
    `cluster` is planned for in place of the back end's own.
    """
    with ExitStack() as undone:
        resolve = partial(resolve_context, backend=backend, settings=load_settings())
        likely = resolve(recipe_backend=None).backend
        local = LocalBackend() if ahead and likely == "local" else None
        if local:  # known for sure only once the recipe is read
            undone.enter_context(local.standby())
        from parctl.recipes.loader import load_recipe

        recipe = load_recipe(source, overrides)
        chosen = resolve(recipe_backend=recipe.launch.backend)
        if chosen.backend != likely:
            undone.close()
            local = None
        owner = local or get_backend(chosen.backend)
        chosen_id = check_run_id(run_id or new_run_id(recipe.name))
        if ahead:
            undone.enter_context(owner.head_start(recipe, chosen_id))
        elif cluster is None and chosen.backend != "local":
            raise UsageError(
                "a dry run contacts nothing, and a plan needs nodes",
                hint="name the cluster: `--cluster h100:2x8`, a file, or "
                f"`{owner.cluster}` to ask it",
            )
        # not above: the planner imports numpy, and torch can be on its way meanwhile
        from parctl.launcher.calibrations import load_calibration
        from parctl.planner.cluster import cluster_for
        from parctl.planner.make import make_plan

        topology = cluster_for(recipe, cluster or owner.cluster, num_devices)
        plan = make_plan(
            recipe,
            topology,
            backend=chosen.backend,
            calibration=load_calibration(topology),
        )
        check_plan(plan, force=force)
        yield Prepared(backend=owner, manifests=owner.render(plan, chosen_id, topology))


def check_on_server(backend: Backend, manifests: Manifests) -> bool:
    """Have the cluster validate what would be submitted. UsageError: only Kubernetes can.

    False: but for the pods, which who launches may not make.
    """
    from parctl.launcher.kubernetes.backend import KubernetesBackend

    if not isinstance(backend, KubernetesBackend):
        raise UsageError(
            f"--dry-run-server asks a Kubernetes cluster, and this run goes to {manifests.backend}",
            hint="`--dry-run` prints what would be submitted anywhere",
        )
    return backend.check(manifests)


def check_plan(plan: Plan, *, force: bool) -> None:
    """Raise NotBuiltError for what cannot run yet, and DoesNotFitError unless `force`."""
    from parctl.planner.fit import refuse_misfit
    from parctl.runtime.supported import refuse_unbuilt

    experts = (plan.layout.expert_axes or {}).get("ep", 1)
    refuse_unbuilt(plan.recipe, {**plan.layout.axes, "ep": experts})
    if not force:
        refuse_misfit(plan)


def launch_plan(plan: Plan, *, run_id: str | None = None, force: bool = False) -> RunRef:
    """Submit a plan to its back end. Raises NotBuiltError, or DoesNotFitError unless `force`."""
    check_plan(plan, force=force)
    backend = get_backend(plan.backend["kind"])
    return backend.submit(backend.render(plan, run_id or new_run_id(plan.recipe.name)))
