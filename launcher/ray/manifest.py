"""What a run on Ray is made of: the settings of its driver, its packages, and the job's request.

Pure: the plan, the id, the installed parctl and the working directory decide every byte. Secrets
are named, never read: a job's environment can be seen by whoever may list jobs.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parctl.errors import UsageError
from parctl.launcher.nodes.environment import (
    AT_START,
    ENVIRONMENT_DEFAULTS,
    given_variables,
    ranks_in_words,
    refuse_reserved,
)
from parctl.launcher.ray.packages import (
    SHIPPED,
    Package,
    parctl_package,
    run_package,
    workdir_package,
)
from parctl.launcher.ray.record import OWNER_KEY, PLAN_KEY, STEPS_KEY
from parctl.planner.plan import Plan
from parctl.recipes.frozen import to_json
from parctl.recipes.ray_spec import DEFAULTS
from parctl.recipes.spec import Recipe

SCHEMA = 1
# the shell that Ray starts is replaced, so that Ray's signals reach the driver alone
ENTRYPOINT = "exec python3 -P -m parctl.launcher.ray.driver"
# Ray kills a driver so many seconds after it was told to stop; the driver itself decides sooner
STOP_WAIT_S = 24 * 3600
DRIVER_ENVIRONMENT = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}


@dataclass(frozen=True, slots=True, kw_only=True)
class RayManifest:
    settings: Mapping[str, Any]  # what the driver reads
    request: Mapping[str, Any]  # the body of POST /api/jobs/
    packages: tuple[Package, ...]

    def documents(self) -> tuple[Mapping[str, Any], ...]:
        sent = [{"uri": package.uri, "holds": package.holds} for package in self.packages]
        job = {"kind": "RayJobRequest", "packages": sent, "body": dict(self.request)}
        return (self.settings, job)


def ray_manifest(plan: Plan, run_id: str, *, storage: str | None, owner: str = "") -> RayManifest:
    """Make all that is sent. UsageError: the recipe asks for what Ray cannot give."""
    recipe = plan.recipe
    refuse_reserved([*given_variables(recipe), *recipe.launch.secrets])
    _refuse_secrets(recipe)
    _refuse_unshared(plan, storage)
    workdir = recipe.launch.workdir or (recipe.script.workdir if recipe.script else None)
    # a directory that is not here is one of the nodes' own
    shipped = workdir is not None and Path(workdir).is_dir()
    settings = run_settings(plan, run_id, storage=storage, workdir=SHIPPED if shipped else workdir)
    packages = [
        parctl_package(),
        run_package(json.dumps(plan.to_json()), json.dumps(settings)),
    ]
    environment: dict[str, Any] = {
        "py_modules": [package.uri for package in packages],
        "env_vars": DRIVER_ENVIRONMENT,
    }
    if shipped:
        packages.append(workdir_package(Path(str(workdir))))
        environment["working_dir"] = packages[-1].uri
    request = {
        "entrypoint": ENTRYPOINT,
        "submission_id": run_id,
        "runtime_env": environment,
        "metadata": job_metadata(plan, owner),
    }
    return RayManifest(settings=settings, request=request, packages=tuple(packages))


def job_metadata(plan: Plan, owner: str = "") -> dict[str, str]:
    """What Ray's job table says of a run."""
    train = plan.recipe.train
    return {
        "name": plan.recipe.name,
        PLAN_KEY: plan.hash,
        STEPS_KEY: str(train.steps) if train else "",
        OWNER_KEY: owner,
    }


def run_settings(
    plan: Plan, run_id: str, *, storage: str | None, workdir: str | None
) -> dict[str, Any]:
    """What the driver reads beside the plan."""
    recipe = plan.recipe
    return {
        "schema": SCHEMA,
        "kind": "RayRun",
        "run_id": run_id,
        "name": recipe.name,
        "plan_hash": plan.hash,
        "parctl_version": plan.parctl_version,
        "task": recipe.task,
        "device_kind": plan.topology.get("kind"),
        # fork: one process per node imports torch once and forks the ranks; command: every rank is
        # started by itself
        "start": "command" if recipe.script else "fork",
        "command": list(recipe.script.command) if recipe.script else [],
        "workdir": workdir,
        "storage": storage,  # where every node keeps the run's files; null: each its own
        "retries": recipe.launch.retries,
        "timeout_s": recipe.launch.timeout_s,
        "stop_grace_s": recipe.launch.stop_grace_s,
        **to_json(recipe.launch.ray or DEFAULTS),
        "steps": recipe.train.steps if recipe.train else None,
        "env": {
            # Ray gives every worker as many threads as its actor has CPUs, and all ranks share one
            "OMP_NUM_THREADS": "1",
            **given_variables(recipe),
        },
        "env_defaults": dict(ENVIRONMENT_DEFAULTS),
        "at_start": dict(AT_START),
        "secrets": {name: secret.from_env for name, secret in recipe.launch.secrets.items()},
        "ranks": ranks_in_words(plan.layout),
    }


def _refuse_secrets(recipe: Recipe) -> None:
    for name, secret in recipe.launch.secrets.items():
        if secret.from_env is None:
            raise UsageError(
                f"launch.secrets.{name} is a Kubernetes Secret, and this run is on Ray",
                hint=f"`{name}: {{from_env: VARIABLE}}` takes it from the environment that Ray was "
                "started with on the nodes",
            )


def _refuse_unshared(plan: Plan, storage: str | None) -> None:
    """Raise when the nodes would save a checkpoint in directories that they do not share."""
    checkpoint = plan.recipe.checkpoint if plan.recipe.train else None  # others only read them
    if plan.layout.num_nodes > 1 and checkpoint and checkpoint.dir is None and storage is None:
        raise UsageError(
            f"{plan.layout.num_nodes} nodes have no common place for checkpoints",
            hint="set checkpoint.dir, or `storage` of the context, to a path that all nodes mount",
        )
