"""The cluster that a recipe is planned for when the user names one, or none."""

from dataclasses import replace

from parctl.errors import UsageError
from parctl.planner.degrees import devices_asked_for
from parctl.recipes.spec import Recipe
from parctl.topology.discover import discover
from parctl.topology.model import Topology


def cluster_for(recipe: Recipe, source: str | None, num_devices: int | None = None) -> Topology:
    """Find the cluster: a line such as `h100:16x8`, a file, or this machine (None or `local`).

    CPU devices are only slots for ranks, so on a machine without GPUs there are as many as the
    recipe's degrees multiply to, when it gives all of them; else as many as cores, with a warning.
    """
    topology = discover(source, num_devices=num_devices)
    if not topology.nodes:
        raise UsageError(
            f"{topology.source} names no node", hint="a plan needs nodes: try `h100:16x8`"
        )
    if not topology.num_devices:
        name = topology.nodes[0].name
        raise UsageError(
            f"{topology.source} names {len(topology.nodes):,} nodes and no device",
            hint=f"say what is in them: `parctl topology --from {source} --from '{name}=h100:1x8' "
            "-o json > FILE`, and plan for that file",
        )
    asked_for = devices_asked_for(recipe.parallelism)
    is_cpu = topology.nodes[0].hardware.kind == "cpu"
    if num_devices is None and source in (None, "local") and is_cpu:
        if asked_for is not None:
            return discover(source, num_devices=asked_for)
        count = topology.num_devices
        said = (
            f"this machine has no GPU: a degree that is left open shares its {count} CPU cores; "
            "`--devices N` plans for another number of ranks"
        )
        return replace(topology, warnings=(*topology.warnings, said))
    return topology
