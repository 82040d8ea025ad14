"""Slurm's topology.conf: blocks where NVLink domains span nodes, else a tree of switches.

The file holds one plugin's view. Where there are both domains and tiers, blocks decide more for a
parallel job; `slurm-yaml` writes both.
"""

import re
from collections.abc import Iterator

from parctl.errors import UsageError
from parctl.topology.export.blocks import Names, hostlist, racks, switches, useful_tiers
from parctl.topology.model import Topology


def export(topology: Topology) -> str:
    """Write topology.conf."""
    check_names(topology)
    return "\n".join(_blocks(topology) if racks(topology) else _tree(topology)) + "\n"


def check_names(topology: Topology) -> None:
    """Refuse names that Slurm could not read."""
    for node in topology.nodes:
        if not re.fullmatch(r"[A-Za-z0-9._-]+", node.name):
            raise UsageError(
                f"node `{node.name[:60]}`: Slurm node names have letters, digits, `.`, `_` and `-`"
            )


def block_names(topology: Topology) -> dict[str, list[str]]:
    """Nodes of each block, by the block's name."""
    names = Names(set())
    return {
        names.unique(domain, parent="block"): [node.name for node in nodes]
        for domain, nodes in racks(topology).items()
    }


def block_sizes(topology: Topology) -> list[int]:
    """The smallest block, then as many blocks together as there can be, in powers of two."""
    sizes = [len(nodes) for nodes in racks(topology).values()]
    base, count = min(sizes), len(sizes)
    return [base * 2**power for power in range(count.bit_length())]


def _blocks(topology: Topology) -> Iterator[str]:
    yield "# slurm.conf: TopologyPlugin=topology/block"
    yield "# a block is an NVLink domain: BLOCK=DOMAIN"
    for (name, nodes), domain in zip(block_names(topology).items(), racks(topology), strict=True):
        yield f"# {name}={''.join(domain.split())}"
        yield f"BlockName={name} Nodes={hostlist(nodes)}"
    yield f"BlockSizes={','.join(map(str, block_sizes(topology)))}"
    inside = {node.name for nodes in racks(topology).values() for node in nodes}
    outside = [node.name for node in topology.nodes if node.name not in inside]
    if outside:
        yield f"# in no block, since they are NVLink domains of their own: {hostlist(outside)}"


def _tree(topology: Topology) -> Iterator[str]:
    yield "# slurm.conf: TopologyPlugin=topology/tree"
    if not useful_tiers(topology):
        yield "# the fabric above the nodes is unknown: one flat switch"
    for switch in switches(topology):
        children = (
            f"Switches={hostlist(switch.switches)}"
            if switch.switches
            else f"Nodes={hostlist(switch.nodes)}"
        )
        yield f"SwitchName={switch.name} {children}"
