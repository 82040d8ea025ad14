"""What a rank on a Ray node is given: torchrun's variables and the device mask, from the layout.

Pure, and called by the driver: only there is the layout known on which the run is really placed.
What a node decides itself (its own environment, the log, the interface of its address) is added by
`parctl.launcher.nodes.node`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from parctl.errors import UsageError
from parctl.recipes.spec import Recipe
from parctl.topology.layout import Layout, Slot

# of `RayRun`; set where neither the environment of Ray on the node nor the recipe does
ENVIRONMENT_DEFAULTS = {"PYTHONUNBUFFERED": "1"}
# what is decided on the cluster, and by whom
AT_START = {
    "MASTER_ADDR": "the address of the node of rank 0",
    "MASTER_PORT": "a free port there, held by its node process as long as the attempt lasts",
    "GLOO_SOCKET_IFNAME": "the interface of the node's address, unless something says otherwise",
    "NCCL_SOCKET_IFNAME": "the same",
    "PARCTL_ATTEMPT": "1, 2, ...",
    "PARCTL_RUN_DIR": "the run directory on the node",
    "PARCTL_NODE": "the node's name",
    "TORCHELASTIC_RESTART_COUNT": "0, 1, ...",
    "TORCHELASTIC_ERROR_FILE": "errors/attempt-N/rank-RANK.json",
}
RESERVED = (
    *AT_START,
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE"),
    *("ROLE_NAME", "ROLE_RANK", "ROLE_WORLD_SIZE", "TORCHELASTIC_RUN_ID", "PARCTL_RUN_ID"),
    *("TORCHELASTIC_MAX_RESTARTS", "TORCHELASTIC_USE_AGENT_STORE"),
    *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"),
)


def given_variables(recipe: Recipe) -> dict[str, str]:
    """The variables that a recipe sets itself."""
    return {**recipe.launch.env, **(recipe.script.env if recipe.script else {})}


def refuse_reserved(given: Iterable[str], *, also: Iterable[str] = ()) -> None:
    """Raise UsageError for variables that parctl sets itself. `also`: what the back end adds."""
    reserved = {*RESERVED, *also}
    # the two that parctl only proposes
    reserved -= {"GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"}
    taken = [name for name in given if name in reserved]
    if taken:
        raise UsageError(
            f"the recipe sets {', '.join(f'`{name}`' for name in taken)}, which parctl sets itself",
            hint="choose another name, or leave it out",
        )


def rank_environments(
    layout: Layout, *, run_id: str, retries: int, kind: str | None
) -> dict[int, dict[str, str]]:
    """Return the variables of every rank. `kind`: of the devices, `gpu`, `cpu` or not known."""
    world_size, found = str(layout.world_size), {}
    common = {
        "WORLD_SIZE": world_size,
        "GROUP_WORLD_SIZE": str(layout.num_nodes),
        "ROLE_NAME": "default",
        "ROLE_WORLD_SIZE": world_size,
        "TORCHELASTIC_RUN_ID": run_id,
        "TORCHELASTIC_MAX_RESTARTS": str(retries),
        "TORCHELASTIC_USE_AGENT_STORE": "False",
        "PARCTL_RUN_ID": run_id,
    }
    for slots in ranks_by_node(layout).values():
        devices = _devices(slots, kind)
        for slot in slots:
            found[slot.rank] = {
                **common,
                **devices,
                "RANK": str(slot.rank),
                "ROLE_RANK": str(slot.rank),
                "LOCAL_RANK": str(slot.local_rank),
                "LOCAL_WORLD_SIZE": str(len(slots)),
                "GROUP_RANK": str(slot.node_rank),
            }
    return found


def ranks_by_node(layout: Layout) -> Mapping[str, tuple[Slot, ...]]:
    """The slots of every node, nodes in the order of their ranks."""
    found: dict[str, list[Slot]] = {}
    for slot in sorted(layout.slots, key=lambda slot: slot.rank):
        found.setdefault(slot.node, []).append(slot)
    return {node: tuple(slots) for node, slots in found.items()}


def ranks_in_words(layout: Layout) -> list[dict[str, Any]]:
    """Every rank as a manifest shows it."""
    coordinates: dict[int, dict[str, int]] = {}
    for position, rank in enumerate(layout.ranks):
        place: dict[str, int] = {}
        for axis, size in reversed(list(layout.axes.items())):
            position, place[axis] = divmod(position, size)
        coordinates[rank] = {axis: place[axis] for axis in layout.axes}
    return [
        {
            "rank": slot.rank,
            "node": slot.node,
            "local_rank": slot.local_rank,
            "gpu": slot.gpu,
            "coordinates": coordinates[slot.rank],
        }
        for slot in layout.slots
    ]


def _devices(slots: tuple[Slot, ...], kind: str | None) -> dict[str, str]:
    """The device mask of a node, in the order of its local ranks."""
    if kind == "cpu":
        return {"CUDA_VISIBLE_DEVICES": ""}
    if kind != "gpu":
        return {}
    mask = ",".join(str(slot.gpu) for slot in sorted(slots, key=lambda slot: slot.local_rank))
    return {"CUDA_VISIBLE_DEVICES": mask, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
