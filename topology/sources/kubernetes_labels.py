"""What the labels of a Kubernetes node say, and which label wins where several say it.

The first family of labels that any node carries is the one that is used: families are not mixed,
since their values come from different views of the fabric. Values may be hashes of names, so they
are compared and never parsed.
"""

import re
from collections.abc import Mapping, Sequence

from parctl.topology.document import text_of
from parctl.topology.products import find_product

Labels = Mapping[str, object]

CLIQUE = "nvidia.com/gpu.clique"  # CLUSTER_UUID.CLIQUE_ID
# best first; the last one is a rack only where the product is rack-scale
DOMAIN_LABELS = (
    CLIQUE,
    "accelerator.topograph.run/domain",
    "oci.oraclecloud.com/host.gpu_memory_fabric_id",
    "topology.k8s.aws/ultraserver-id",
)
RACK_SCALE_DOMAIN_LABEL = "cloud.google.com/gce-topology-subblock"
TOPOGRAPH_TIER = re.compile(r"fabric\.topograph\.run/tier-(\d{1,3})")
# families of tiers, best first; labels of a family from far to near
TIER_FAMILIES = (
    (
        "cloud.google.com/gce-topology-block",
        "cloud.google.com/gce-topology-subblock",
        "cloud.google.com/gce-topology-host",
    ),
    (
        "topology.k8s.aws/network-node-layer-1",
        "topology.k8s.aws/network-node-layer-2",
        "topology.k8s.aws/network-node-layer-3",
    ),
    (
        "oci.oraclecloud.com/rdma.hpc_island_id",
        "oci.oraclecloud.com/rdma.network_block_id",
        "oci.oraclecloud.com/rdma.local_block_id",
    ),
    (
        "oci.oraclecloud.com/host.hpc_island_id",
        "oci.oraclecloud.com/host.network_block_id",
        "oci.oraclecloud.com/host.local_block_id",
    ),
    ("backend.coreweave.cloud/fabric", "backend.coreweave.cloud/leafgroup"),
    ("topology.kubernetes.io/region", "topology.kubernetes.io/zone", "kubernetes.io/hostname"),
)
PRODUCT_LABELS = (
    "nvidia.com/gpu.product",
    "amd.com/gpu.product-name",
    "beta.amd.com/gpu.product-name",
    "cloud.google.com/gke-accelerator",
)
# prefixes that tell a plain list of labels from any other YAML
KNOWN_PREFIXES = (
    "nvidia.com/",
    "amd.com/gpu",
    "beta.amd.com/gpu",
    "accelerator.topograph.run/",
    "fabric.topograph.run/",
    "topology.k8s.aws/",
    "topology.kubernetes.io/",
    "oci.oraclecloud.com/",
    "backend.coreweave.cloud/",
    "cloud.google.com/g",
    "hami.io/",
    "kubernetes.io/hostname",
)


def label(labels: Labels, key: str) -> str | None:
    """Value of one label as text, None when it is absent or empty."""
    return text_of(labels.get(key))


def nvlink_domain(labels: Labels, *, product: str | None) -> tuple[str, str] | None:
    """The rack-scale NVLink domain of a node and the label that names it."""
    for key in DOMAIN_LABELS:
        value = label(labels, key)
        if value is not None and not (key == CLIQUE and _no_clique(value)):
            return value, key
    found = find_product(product) if product else None
    if found is not None and found.domain_devices is not None:
        value = label(labels, RACK_SCALE_DOMAIN_LABEL)
        if value is not None:
            return value, RACK_SCALE_DOMAIN_LABEL
    return None


def tier_labels(
    all_labels: Sequence[Labels], kueue_levels: Sequence[Sequence[str]]
) -> tuple[str, ...]:
    """The labels that are the fabric tiers of these nodes, nearest first."""
    present = {key for labels in all_labels for key in labels if label(labels, key) is not None}
    for levels in sorted(kueue_levels, key=lambda levels: -_coverage(levels, all_labels)):
        if _coverage(levels, all_labels) or not all_labels:
            return tuple(reversed(levels))
    numbers = sorted(int(match[1]) for key in present if (match := TOPOGRAPH_TIER.fullmatch(key)))
    if numbers:
        return tuple(f"fabric.topograph.run/tier-{number}" for number in numbers)
    for family in TIER_FAMILIES:
        used = [key for key in family if key in present]
        if used and used != ["kubernetes.io/hostname"]:
            return tuple(reversed(used))
    return ()


def product_of(labels: Labels) -> tuple[str, str] | None:
    """Name of the node's GPU product as its label has it, and that label."""
    for key in PRODUCT_LABELS:
        value = label(labels, key)
        if value is not None:
            return value, key
    return None


def looks_like_labels(keys: Sequence[str]) -> bool:
    """Whether the keys of a mapping are labels of a node."""
    return any(key.startswith(KNOWN_PREFIXES) for key in keys)


def _no_clique(value: str) -> bool:
    """The driver writes a cluster of all zeros where there is no fabric."""
    return not value.partition(".")[0].strip("0-")


def _coverage(levels: Sequence[str], all_labels: Sequence[Labels]) -> int:
    """How many nodes have every level; the node's own name is always there."""
    return sum(
        all(label(labels, key) or key == "kubernetes.io/hostname" for key in levels)
        for labels in all_labels
    )
