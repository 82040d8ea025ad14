"""What the processes in the pods are told about a run: the same words as on Ray, from the plan."""

from collections.abc import Mapping
from typing import Any

from parctl.planner.plan import Plan
from parctl.recipes.kubernetes_spec import KubernetesSpec

ENVIRONMENT_DEFAULTS = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def run_settings(plan: Plan, run_id: str) -> Mapping[str, Any]:
    """As `parctl.launcher.nodes.node` and `parctl.launcher.nodes.attempt` read them."""
    recipe = plan.recipe
    return {
        "run_id": run_id,
        "plan_hash": plan.hash,
        # fork: one process per pod imports torch once and forks the ranks; command: every rank is
        # started by itself
        "start": "command" if recipe.script else "fork",
        "command": list(recipe.script.command) if recipe.script else [],
        "retries": recipe.launch.retries,
        "timeout_s": None,  # of the whole run: the workload's activeDeadlineSeconds
        "stop_grace_s": recipe.launch.stop_grace_s,
        "env": {**recipe.launch.env, **(recipe.script.env if recipe.script else {})},
        "env_defaults": dict(ENVIRONMENT_DEFAULTS),
        # the values are in the environment of the container already
        "secrets": {name: name for name in recipe.launch.secrets},
    }


def kubernetes_spec(plan: Plan) -> KubernetesSpec:
    return plan.recipe.launch.kubernetes or KubernetesSpec()
