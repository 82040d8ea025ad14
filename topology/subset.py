"""Part of a cluster: only the named nodes, with all that is known of them."""

from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches

from parctl.errors import UsageError
from parctl.topology.model import Topology


def only_nodes(topology: Topology, names: Sequence[str]) -> Topology:
    """Keep the nodes of these names, in the cluster's order; no name keeps all."""
    if not names:
        return topology
    known, first = {node.name for node in topology.nodes}, topology.nodes[0].name
    for name in names:
        if name not in known:
            nearest = get_close_matches(name, sorted(known), n=1)
            raise UsageError(
                f"no node `{name[:60]}` among {len(known):,}",
                hint=f"did you mean `{nearest[0]}`?" if nearest else f"the first is `{first}`",
            )
    wanted = set(names)
    kept = tuple(node for node in topology.nodes if node.name in wanted)
    return replace(topology, nodes=kept)
