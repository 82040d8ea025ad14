"""Clusters that exist only as a line of text: `h100:64x8`, `gb200:4x18x4`, `h100:2x8+l40s:1x4`.

::

    PRODUCT:NODESxDEVICES            every node is its own NVLink domain
    PRODUCT:DOMAINSxNODESxDEVICES    rack-scale NVLink domains of that many nodes (NVL72)
    A+B                              both, in that order

Capital letters are read as small ones; digits are 0 to 9 and no other script's.

The inside of a node comes from the table of products: every GPU joined with every other through
NVSwitch, the DGX-1V cube mesh for V100, PCIe alone where the product has no NVLink; one NIC per
GPU at the product's usual rate, NIC i on rail i. Above the node nothing is invented: the cluster
is one flat network and its fabric tiers are listed under `unknown`.
"""

import re
from collections.abc import Iterator

from parctl.errors import UsageError
from parctl.topology.model import Device, Hardware, Nic, Node, Topology
from parctl.topology.products import DGX_1V, Product, product_named, usual_code

MAX_DEVICES = 2**20

_SHAPE = re.compile(r"([^:+]*):(\d+)x(\d+)(?:x(\d+))?", re.ASCII | re.IGNORECASE)


def looks_synthetic(text: str) -> bool:
    """Whether the text has the form `name:...` of a synthetic cluster, right or wrong."""
    return re.match(r"[\w.-]+:\s*[\dxX]", text) is not None and "/" not in text


def parse_cluster(spec: str) -> Topology:
    """Build the cluster that a line such as `h100:64x8` describes.

    >>> parse_cluster("gb200:4x18x4").num_devices
    288
    """
    parts = [(part.strip(), *_parse_part(spec, part.strip())) for part in spec.split("+")]
    total = sum(domains * nodes * devices for _, _, domains, nodes, devices in parts)
    if total > MAX_DEVICES:
        raise UsageError(f"`{spec}` has {total:,} devices, at most {MAX_DEVICES:,} are laid out")
    unknown = [
        f"fabric tiers: `{spec}` says nothing above the node, so the cluster counts as one network"
    ]
    nodes: list[Node] = []
    num_domains = 0
    for text, product, domains, per_domain, num_devices in parts:
        hardware = node_hardware(product, num_devices)
        rack_scale = _is_rack_scale(text)
        for i in range(domains * per_domain):
            domain = f"domain-{num_domains + i // per_domain}" if rack_scale else None
            nodes.append(
                Node(
                    name=f"node-{len(nodes)}",
                    hardware=hardware,
                    domain=domain,
                    tiers=(),
                    sources={"domain": "synthetic"} if rack_scale else {},
                )
            )
        num_domains += domains * rack_scale
        unknown += _unknown_of(text, product, rack_scale)
    return Topology(
        name=spec,
        source=f"synthetic {spec}",
        tiers=(),
        nodes=tuple(nodes),
        unknown=tuple(unknown),
    )


def node_hardware(product: Product, num_devices: int) -> Hardware:
    """The inside of one synthetic node, from the product's table entry."""
    positions = range(num_devices)
    per_numa = -(-num_devices // product.numa_nodes)
    numa = [i // per_numa for i in positions]
    sources = {"product": "synthetic", "memory_bytes": "product", "numa": "product"}
    has_nics = product.nic_gbit_s is not None
    return Hardware(
        kind="cpu" if product.mesh == "host" else "gpu",
        devices=tuple(
            Device(
                index=i,
                product=product.key,
                uuid=None,
                memory_bytes=product.memory_bytes,
                numa=numa[i],
                pci=None,
                sources=sources,
            )
            for i in positions
        ),
        matrix=tuple(
            tuple(
                usual_code(product, num_devices, i, j, same_numa=numa[i] == numa[j])
                for j in positions
            )
            for i in positions
        ),
        nics=tuple(
            Nic(name=f"nic-{i}", speed_gbit_s=product.nic_gbit_s, numa=numa[i], pci=None, rail=i)
            for i in positions
            if has_nics
        ),
        nic_matrix=tuple(
            tuple("PIX" if i == j else "NODE" if numa[i] == numa[j] else "SYS" for j in positions)
            for i in positions
            if has_nics
        ),
        num_cpus=num_devices if product.mesh == "host" else None,
        memory_bytes=None,
        sources={"matrix": "product", "nics": "product", "nic_matrix": "product"},
    )


def _is_rack_scale(part: str) -> bool:
    return part.lower().count("x", part.index(":")) == 2


def _parse_part(spec: str, part: str) -> tuple[Product, int, int, int]:
    """Check one `PRODUCT:...` and return product, domains, nodes per domain, devices per node."""
    match = _SHAPE.fullmatch(part)
    if match is None:
        raise UsageError(
            f"cluster `{spec}`: found `{part}`, expected PRODUCT:NODESxDEVICES",
            hint="for example `h100:16x8`, or `gb200:4x18x4` for 4 NVLink domains of 18 nodes of 4",
        )
    name, *numbers = match.groups()
    product = product_named(name)
    sizes = [_count(spec, part, number) for number in numbers if number is not None]
    if len(sizes) == 2:
        sizes = [sizes[0], 1, sizes[1]]
    domains, per_domain, num_devices = sizes
    if num_devices > product.max_devices_per_node:
        raise UsageError(
            f"cluster `{spec}`: {num_devices} devices per node, but {product.key} nodes have "
            f"{product.max_devices_per_node} at most",
            hint=f"write {product.key}:NODESx{product.devices_per_node}",
        )
    if product.mesh == "hybrid" and len(DGX_1V) < num_devices != 16:
        raise UsageError(
            f"cluster `{spec}`: {product.key} nodes have 1 to 8 (cube mesh) or 16 (NVSwitch) GPUs"
        )
    if _is_rack_scale(part):
        _check_domain(spec, product, per_domain, num_devices)
    return product, domains, per_domain, num_devices


def _check_domain(spec: str, product: Product, per_domain: int, num_devices: int) -> None:
    if product.domain_devices is None:
        raise UsageError(
            f"cluster `{spec}`: {product.key} has no NVLink domain larger than a node",
            hint=f"write {product.key}:NODESx{num_devices}; "
            "rack-scale domains exist for gb200 and gb300",
        )
    if per_domain * num_devices > product.domain_devices:
        raise UsageError(
            f"cluster `{spec}`: {per_domain} nodes x {num_devices} = {per_domain * num_devices} "
            f"GPUs per NVLink domain, but {product.key} domains have {product.domain_devices} "
            "at most",
            hint=f"{product.domain_devices // num_devices} nodes of {num_devices} fill one domain",
        )


def _count(spec: str, part: str, digits: str) -> int:
    # the length is checked first: int() of a million digits takes long
    if len(digits) > 7 or int(digits) > MAX_DEVICES:
        raise UsageError(
            f"cluster `{spec[:60]}`: a count of `{part[:60]}` is above {MAX_DEVICES:,}"
        )
    if int(digits) == 0:
        raise UsageError(f"cluster `{spec}`: `{part}` has a 0", hint="every count is at least 1")
    return int(digits)


def _unknown_of(part: str, product: Product, rack_scale: bool) -> Iterator[str]:
    if product.domain_devices is not None and not rack_scale:
        yield (
            f"NVLink domains of `{part}`: every node counts as its own; "
            f"write {product.key}:DOMAINSxNODESx{product.devices_per_node} to say how they are"
        )
    if product.mesh == "none" and product.links is not None:
        yield f"NVLink bridges of `{part}`: taken as absent, the GPUs are joined by PCIe"
    if product.nic_gbit_s is None:
        yield f"network of `{part}`: the product has no usual rate"
