"""Labels for Ray nodes: where each is, and how many of its GPUs are one full NVLink mesh.

Ray itself labels nodes with nothing about NVLink or the fabric. Each entry is the content of a
file for `ray start --labels-file FILE` on that node; keys that begin with `ray.io/` are Ray's own.
"""

from parctl.topology.describe import UNKNOWN
from parctl.topology.export.blocks import racks, useful_tiers
from parctl.topology.export.labels import label_value
from parctl.topology.model import Node, Topology

NODE = "parctl.dev/node"
DOMAIN = "parctl.dev/nvlink-domain"
TIER = "parctl.dev/tier-{}"  # 0 is the nearest
PRODUCT = "parctl.dev/product"
MESH = "parctl.dev/nvlink-mesh"  # devices in the node's largest full mesh


def export(topology: Topology) -> str:
    """Write YAML: node name -> labels."""
    import yaml

    tiers = useful_tiers(topology)
    domains = racks(topology)
    labels = {node.name: _labels(node, tiers, domains) for node in topology.nodes}
    return str(yaml.safe_dump(labels, sort_keys=False))


def _labels(node: Node, tiers: list[int], domains: dict[str, list[Node]]) -> dict[str, str]:
    labels = {NODE: label_value(node.name)}
    products = {device.product for device in node.hardware.devices}
    if len(products) == 1 and (product := products.pop()):
        labels[PRODUCT] = label_value(product)
    if cliques := node.hardware.nvlink_cliques:
        labels[MESH] = str(max(len(members) for members, _ in cliques))
    if node.domain in domains:
        labels[DOMAIN] = label_value(node.domain or "")
    for position in tiers:
        if node.tiers[position] != UNKNOWN:
            labels[TIER.format(position)] = label_value(node.tiers[position])
    return labels
