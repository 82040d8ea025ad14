"""The same calls as the command line, for notebooks and scripts.

>>> import parctl
>>> plan = parctl.plan(parctl.load("llama-70b"), cluster="h100:16x8")
>>> plan.layout.axes
{'fsdp': 16, 'tp': 8}
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from parctl.launcher.backend import Backend, LogLine, RunStatus
from parctl.planner.plan import Plan
from parctl.recipes.spec import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A submitted run; every call asks the back end, which holds all state."""

    run_id: str
    backend: Backend

    def status(self) -> RunStatus:
        return self.backend.status(self.run_id)

    def logs(self, *, rank: int | None = None, follow: bool = False) -> Iterator[LogLine]:
        return self.backend.logs(self.run_id, rank=rank, since=None, tail=None, follow=follow)

    def wait(self, timeout_s: float | None = None) -> RunStatus:
        """Return the status once the run has ended. Raises RunTimeoutError."""
        from parctl.launcher.waiting import wait_for

        return wait_for(self.backend, self.run_id, timeout_s=timeout_s)

    def cancel(self, *, grace_s: float | None = None) -> None:
        """Stop the run; after `grace_s` (5 s) no process of it is left."""
        self.backend.cancel(self.run_id, grace_s=grace_s)


def load(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe: a path, a shipped name, or a line. Raises RecipeError with every problem."""
    from parctl.recipes.loader import load_recipe

    return load_recipe(str(source), overrides)


def plan(
    recipe: Recipe | str,
    cluster: str | None = None,
    *,
    num_devices: int | None = None,
    backend: str = "local",
) -> Plan:
    """Lay a recipe out on a cluster (None: this machine) and estimate it."""
    from parctl.planner.cluster import cluster_for
    from parctl.planner.make import make_plan

    if isinstance(recipe, str):
        recipe = load(recipe)
    return make_plan(recipe, cluster_for(recipe, cluster, num_devices), backend=backend)


def launch(plan: Plan, *, run_id: str | None = None, force: bool = False) -> Run:
    """Submit a plan to its back end. Raises DoesNotFitError unless `force`."""
    from parctl.launcher.backends import get_backend
    from parctl.launcher.launch import launch_plan

    reference = launch_plan(plan, run_id=run_id, force=force)
    return Run(run_id=reference.run_id, backend=get_backend(reference.backend))
