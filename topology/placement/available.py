"""The nodes that a recipe leaves for its ranks, before anybody knows how many ranks there are.

`lay_out` is told which nodes to exclude and how many to keep free; whoever counts the devices that
a job could have must leave the same ones out.
"""

from collections.abc import Sequence
from dataclasses import replace

from parctl.errors import CannotPlaceError
from parctl.topology.model import Topology
from parctl.topology.placement.hard_rule import inspect
from parctl.topology.placement.order import in_natural_order
from parctl.topology.placement.pool import spare_nodes
from parctl.topology.placement.request import check_names


def available(
    topology: Topology, *, exclude: Sequence[str], require: Sequence[str], spares: int
) -> Topology:
    """The cluster without excluded nodes and without `spares` nodes that stay free.

    Raises UsageError for names that the cluster does not have, CannotPlaceError when no node stays.
    """
    check_names(topology, exclude=exclude, require=require)
    if not exclude and not spares:
        return topology
    left_out = set(exclude)
    nodes = [node for node in in_natural_order(topology.nodes) if node.name not in left_out]
    hardware = {id(node.hardware): node.hardware for node in nodes}
    insides = {key: inspect(value, allow_pcie=True) for key, value in hardware.items()}
    free = {node.name for node in spare_nodes(nodes, insides, require, spares)}
    kept = tuple(node for node in nodes if node.name not in free)
    if not kept:
        total = len(topology.nodes)
        raise CannotPlaceError(
            f"placement leaves no node: {total} in the cluster, {len(left_out)} excluded, "
            f"{spares} to be kept free",
            hint="exclude fewer nodes, or lower `placement.spares`",
        )
    return replace(topology, nodes=kept)
