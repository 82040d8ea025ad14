"""Slurm's topology.yaml (25.05 and newer), which wins over topology.conf and holds several views.

The default view is the block view where NVLink domains span nodes, else the tree.
"""

from typing import Any

from parctl.topology.export.blocks import hostlist, racks, switches, useful_tiers
from parctl.topology.export.slurm import block_names, block_sizes, check_names
from parctl.topology.model import Topology


def export(topology: Topology) -> str:
    """Write topology.yaml."""
    import yaml

    check_names(topology)
    views: list[dict[str, Any]] = []
    if racks(topology):
        blocks = [
            {"block": name, "nodes": hostlist(nodes)}
            for name, nodes in block_names(topology).items()
        ]
        block = {"block_sizes": block_sizes(topology), "blocks": blocks}
        views.append({"topology": "nvlink-blocks", "cluster_default": True, "block": block})
    if useful_tiers(topology):
        tree = [
            {"switch": switch.name, "children": hostlist(switch.switches)}
            if switch.switches
            else {"switch": switch.name, "nodes": hostlist(switch.nodes)}
            for switch in switches(topology)
        ]
        views.append(
            {
                "topology": "fabric-tree",
                "cluster_default": not views,
                "tree": {"switches": tree},
            }
        )
    if not views:
        views.append({"topology": "flat", "cluster_default": True, "flat": True})
    return str(yaml.safe_dump(views, sort_keys=False, width=1000, explicit_start=True))
