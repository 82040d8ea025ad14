"""Kueue's Topology (levels from far to near), a ResourceFlavor that uses it, and the node labels.

`kubectl apply --server-side -f FILE` creates the first two and adds the labels to the nodes that
exist. A Topology has one order of levels, so the NVLink domain stands below every tier that it lies
inside.
"""

import re
from typing import Any

from parctl.topology.export.labels import HOST, domain_key, label_value, place_labels, tier_keys
from parctl.topology.model import Topology

API_VERSION = "kueue.x-k8s.io/v1beta2"
CLUSTER = "parctl.dev/cluster"


def export(topology: Topology) -> str:
    """Write the objects as YAML documents."""
    import yaml

    name = re.sub(r"[^a-z0-9]+", "-", topology.name.lower()).strip("-")[:40].strip("-") or "cluster"
    labels = {CLUSTER: label_value(name)}
    documents: list[dict[str, Any]] = [
        {
            "apiVersion": API_VERSION,
            "kind": "Topology",
            "metadata": {"name": name},
            "spec": {"levels": [{"nodeLabel": key} for key in levels(topology)]},
        },
        {
            "apiVersion": API_VERSION,
            "kind": "ResourceFlavor",
            "metadata": {"name": name},
            "spec": {"nodeLabels": labels, "topologyName": name},
        },
    ]
    tiers, domain = tier_keys(topology), domain_key(topology)
    documents += [
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": node.name, "labels": labels | place_labels(node, tiers, domain)},
        }
        for node in topology.nodes
    ]
    # plain copies: YAML would print shared values as anchors
    return str(yaml.dump_all(documents, Dumper=_plain_dumper(), sort_keys=False))


def levels(topology: Topology) -> list[str]:
    """Label keys from the farthest tier to the host."""
    if not topology.nodes:  # what Kueue's own Topology says is all there is
        return [key for key in reversed(topology.tiers) if key != HOST] + [HOST]
    keys = tier_keys(topology)
    near_to_far = list(keys.values())
    domain = domain_key(topology)
    if domain is not None and domain not in near_to_far:
        inner = [position for position in keys if _inside_a_domain(topology, position)]
        near_to_far.insert(len(inner), domain)
    return [*(key for key in reversed(near_to_far) if key != HOST), HOST]


def _inside_a_domain(topology: Topology, position: int) -> bool:
    """Whether every value of a tier lies in one domain, and some domain has several of them."""
    domains: dict[str, set[str | None]] = {}
    for node in topology.nodes:
        domains.setdefault(node.tiers[position], set()).add(node.domain)
    num_domains = len({node.domain for node in topology.nodes})
    return len(domains) > num_domains and all(len(found) == 1 for found in domains.values())


def _plain_dumper() -> Any:
    import yaml

    class PlainDumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    return PlainDumper
