"""What a local run is made of, as one plain document: program, environment, devices, logs.

Pure: a plan and an id in, a document out, the same bytes every time. What cannot be known before
the start (a free port, the number of the attempt) is listed under `at_start` with who decides it.
Secrets are named, never read.
"""

from collections.abc import Mapping
from typing import Any

from parctl.errors import CannotPlaceError, UsageError
from parctl.launcher.early import ENVIRONMENT_DEFAULTS
from parctl.planner.plan import Plan
from parctl.topology.layout import Slot

SCHEMA = 1
FORK_COMMAND = ("python", "-m", "parctl.runtime.forkserver")
# what the supervisor sets itself, by attempt
AT_START = {
    "MASTER_PORT": "a free port, held by the supervisor as long as the attempt lasts",
    "PARCTL_ATTEMPT": "1, 2, ...",
    "PARCTL_RUN_DIR": "the run directory",
    "TORCHELASTIC_RESTART_COUNT": "0, 1, ...",
    "TORCHELASTIC_ERROR_FILE": "errors/attempt-N/rank-RANK.json",
}


def local_document(plan: Plan, run_id: str) -> dict[str, Any]:
    """Return the document of a run. CannotPlaceError: the plan needs more than one node."""
    recipe, layout = plan.recipe, plan.layout
    if layout.num_nodes > 1:
        raise CannotPlaceError(
            f"the plan uses {layout.num_nodes} nodes, and a local run has one",
            hint="plan for this machine, or launch with `-b ray` or `-b kubernetes`",
        )
    given = {**recipe.launch.env, **(recipe.script.env if recipe.script else {})}
    common = _common_environment(plan, run_id)
    ranks = [_rank(plan, slot) for slot in layout.slots]
    _refuse_reserved([*given, *recipe.launch.secrets], [*common, *AT_START, *ranks[0]["env"]])
    return {
        "schema": SCHEMA,
        "kind": "LocalRun",
        "run_id": run_id,
        "name": recipe.name,
        "plan_hash": plan.hash,
        "parctl_version": plan.parctl_version,
        "task": recipe.task,
        # fork: one process imports torch once and forks the ranks; command: every rank is started
        # by itself
        "start": "command" if recipe.script else "fork",
        "command": list(recipe.script.command if recipe.script else FORK_COMMAND),
        "workdir": recipe.script.workdir if recipe.script else None,
        "retries": recipe.launch.retries,
        "timeout_s": recipe.launch.timeout_s,
        "stop_grace_s": recipe.launch.stop_grace_s,
        "steps": recipe.train.steps if recipe.train else None,
        "env": {**given, **common},
        # set only where the launcher's environment and `env` do not
        "env_defaults": dict(ENVIRONMENT_DEFAULTS),
        "at_start": dict(AT_START),
        "secrets": {name: secret.from_env for name, secret in recipe.launch.secrets.items()},
        "ranks": ranks,
    }


def _common_environment(plan: Plan, run_id: str) -> dict[str, str]:
    world_size = str(plan.layout.world_size)
    environment = {
        "WORLD_SIZE": world_size,
        "LOCAL_WORLD_SIZE": world_size,
        "GROUP_RANK": "0",
        "GROUP_WORLD_SIZE": "1",
        "ROLE_NAME": "default",
        "ROLE_WORLD_SIZE": world_size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
        "TORCHELASTIC_RUN_ID": run_id,
        "TORCHELASTIC_MAX_RESTARTS": str(plan.recipe.launch.retries),
        # rank 0 holds the store, there is no agent that does
        "TORCHELASTIC_USE_AGENT_STORE": "False",
        "PARCTL_RUN_ID": run_id,
    }
    mask = device_mask(plan)
    if mask is None:
        return environment
    # the mask counts devices as the driver does; CUDA alone would put the fastest first
    return {**environment, "CUDA_VISIBLE_DEVICES": mask, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def device_mask(plan: Plan) -> str | None:
    """Return the devices in the order of local ranks, which LOCAL_RANK indexes; None: unknown."""
    kind = plan.topology.get("kind")
    if kind != "gpu":
        # a plan for CPUs is for CPUs also on a machine with GPUs
        return "" if kind == "cpu" else None
    slots = sorted(plan.layout.slots, key=lambda slot: slot.local_rank)
    return ",".join(str(slot.gpu) for slot in slots)


def _rank(plan: Plan, slot: Slot) -> dict[str, Any]:
    return {
        "rank": slot.rank,
        "node": slot.node,
        "local_rank": slot.local_rank,
        "gpu": slot.gpu,
        "coordinates": plan.layout.coordinates(slot.rank),
        "log": f"logs/attempt-N/rank-{slot.rank}.log",
        "env": {
            "RANK": str(slot.rank),
            "LOCAL_RANK": str(slot.local_rank),
            "ROLE_RANK": str(slot.rank),
        },
    }


def _refuse_reserved(given: list[str], reserved: list[str]) -> None:
    taken: Mapping[str, None] = dict.fromkeys(name for name in given if name in reserved)
    if taken:
        raise UsageError(
            f"the recipe sets {', '.join(f'`{name}`' for name in taken)}, which parctl sets itself",
            hint="choose another name, or leave it out",
        )
