"""Names and values of labels that say where a node is, for Kubernetes and Ray alike.

Where a fact came from a label, that label is used again. Otherwise Kubernetes gets the keys of
NVIDIA's topograph, which our own reader and other schedulers know; Ray, which takes no key of
anybody's system, gets `parctl.dev/...`.
"""

import hashlib
import re
from collections.abc import Mapping

from parctl.topology.describe import UNKNOWN
from parctl.topology.export.blocks import racks, useful_tiers
from parctl.topology.model import Node, Topology

HOST = "kubernetes.io/hostname"
DOMAIN = "accelerator.topograph.run/domain"
TIER = "fabric.topograph.run/tier-{}"
MAX_VALUE = 63
_KEY = re.compile(r"([a-z0-9.-]+/)[A-Za-z0-9._-]{1,63}")


def label_value(text: str) -> str:
    """Turn any text into a label value; a hash keeps changed values apart.

    >>> label_value("rack-1"), label_value("rack 1")
    ('rack-1', 'rack-1-ef7ee7d4')
    """
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")
    if plain == text and len(text) <= MAX_VALUE:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{plain[: MAX_VALUE - 9].rstrip('-._')}-{digest}".lstrip("-")


def tier_keys(topology: Topology) -> dict[int, str]:
    """Label key of every tier that groups nodes, by its position, nearest first."""
    return {
        position: topology.tiers[position]
        if _KEY.fullmatch(topology.tiers[position])
        else TIER.format(position)
        for position in useful_tiers(topology)
    }


def domain_key(topology: Topology) -> str | None:
    """Label key of rack-scale NVLink domains; None where there are none."""
    inside = [node for nodes in racks(topology).values() for node in nodes]
    if not inside:
        return None
    # sources read `k8s-label nvidia.com/gpu.clique`
    sources = {node.sources.get("domain", "").rpartition(" ")[2] for node in inside}
    key = sources.pop() if len(sources) == 1 else ""
    return key if _KEY.fullmatch(key) else DOMAIN


def place_labels(node: Node, tiers: Mapping[int, str], domain: str | None) -> dict[str, str]:
    """The labels that say where one node is; an unknown place has none.

    `tiers` and `domain` are the keys of the cluster: `tier_keys`, `domain_key`.
    """
    labels = {
        key: label_value(node.tiers[position])
        for position, key in tiers.items()
        if node.tiers[position] != UNKNOWN
    }
    if domain is not None and node.domain is not None:
        labels[domain] = label_value(node.domain)
    return labels
