"""ResourceSlices: the devices that Kubernetes' dynamic resource allocation drivers announce.

`resource.k8s.io/v1` has a device's attributes beside its name, `v1beta1` has them under `basic`.
Attribute names may carry the driver's domain (`gpu.nvidia.com/uuid`) or not (`uuid`). A pool is
published anew under a higher generation; only the newest counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from parctl.topology.document import mapping, mappings, text_of, whole_number
from parctl.topology.model import Device, Nic
from parctl.topology.products import find_product
from parctl.topology.sources.quantity import parse_quantity

SOURCE = "k8s-slice"
PCIE_ROOT = "resource.kubernetes.io/pcieRoot"
MAX_INDEX = 4096
MAX_DEVICES = 1024  # of one node


@dataclass(slots=True)
class NodeDevices:
    """What the slices of one node hold, in the order of their PCI addresses."""

    devices: list[Device] = field(default_factory=list)
    device_roots: list[str | None] = field(default_factory=list)
    nics: list[Nic] = field(default_factory=list)
    nic_roots: list[str | None] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # sentences


def read_slices(slices: Sequence[Mapping[str, Any]]) -> dict[str, NodeDevices]:
    """Collect the devices by node. Slices of no single node are ignored."""
    result: dict[str, NodeDevices] = {}
    for node, pools in _newest(slices).items():
        found = result.setdefault(node, NodeDevices())
        entries: list[tuple[Mapping[str, Any], str]] = []
        for (driver, pool), members in sorted(pools.items()):
            expected = max(
                whole_number(mapping(item, "spec", "pool").get("resourceSliceCount"), most=10**6)
                or 0
                for item in members
            )
            if expected > len(members):
                found.missing.append(
                    f"{node}: {expected - len(members)} of {expected} ResourceSlices of pool "
                    f"`{pool}` ({driver})"
                )
            for item in members:
                entries += [(e, driver) for e in mappings(mapping(item, "spec").get("devices"))]
        _add_devices(found, node, entries)
    return result


def _newest(
    slices: Sequence[Mapping[str, Any]],
) -> dict[str, dict[tuple[str, str], list[Mapping[str, Any]]]]:
    """Slices by node and (driver, pool), of the newest generation, each name once."""
    groups: dict[str, dict[tuple[str, str], dict[str, Mapping[str, Any]]]] = {}
    generations: dict[tuple[str, str, str], int] = {}
    for number, item in enumerate(slices):
        node = _node_name(item)
        if node is None:
            continue
        spec = mapping(item, "spec")
        pool = mapping(spec, "pool")
        name = text_of(pool.get("name")) or node
        driver = text_of(spec.get("driver")) or "unnamed driver"
        generation = whole_number(pool.get("generation"), most=2**62) or 0
        known = generations.get((node, driver, name), -1)
        if generation < known:
            continue
        members = groups.setdefault(node, {}).setdefault((driver, name), {})
        if generation > known:
            generations[node, driver, name] = generation
            members.clear()
        members[text_of(mapping(item, "metadata").get("name")) or f"slice {number}"] = item
    return {
        node: {key: list(members.values()) for key, members in pools.items()}
        for node, pools in groups.items()
    }


def _node_name(item: Mapping[str, Any]) -> str | None:
    name = text_of(mapping(item, "spec").get("nodeName"))
    if name is not None:
        return name
    for owner in mappings(mapping(item, "metadata").get("ownerReferences")):
        if owner.get("kind") == "Node":
            return text_of(owner.get("name"))
    return None


def _add_devices(
    found: NodeDevices, node: str, entries: Sequence[tuple[Mapping[str, Any], str]]
) -> None:
    gpus: list[tuple[tuple[str, str], int | None, Device, str | None]] = []
    for entry, driver in entries:
        content = mapping(entry, "basic") or entry
        attributes = _attributes(content)
        root = attributes.get(PCIE_ROOT) or attributes.get("pcieRoot")
        name = text_of(entry.get("name")) or "?"
        if _is_nic(attributes, driver):
            found.nics.append(_nic(attributes, name))
            found.nic_roots.append(root)
        elif _is_gpu(attributes, driver):
            if len(gpus) == MAX_DEVICES:
                found.missing.append(f"{node}: GPUs after the first {MAX_DEVICES}")
                break
            device = _gpu(attributes, mapping(content, "capacity"), entry)
            index = whole_number(attributes.get("index"), most=MAX_INDEX)
            gpus.append(((device.pci or "~", name), index, device, root))
    gpus.sort(key=lambda gpu: gpu[0])
    indexes = [index for _, index, _, _ in gpus]
    numbered = None not in indexes and len(set(indexes)) == len(indexes)
    if numbered:
        gpus.sort(key=lambda gpu: gpu[1] or 0)
    for position, (_, index, device, root) in enumerate(gpus):
        number = index if numbered and index is not None else position
        found.devices.append(_with_index(device, number))
        found.device_roots.append(root)


def _attributes(content: Mapping[str, Any]) -> dict[str, str]:
    """Values as text by name, and by name without the driver's domain."""
    result: dict[str, str] = {}
    for key, value in mapping(content, "attributes").items():
        if not isinstance(key, str):
            continue
        for scalar in mapping(value).values():
            text = str(scalar).lower() if isinstance(scalar, bool) else text_of(scalar)
            if text is not None:
                result[key] = text
                result.setdefault(key.rpartition("/")[2], text)
    return result


def _is_nic(attributes: Mapping[str, str], driver: str) -> bool:
    if attributes.get("virtual") == "true" or attributes.get("type") in ("veth", "lo", "bridge"):
        return False
    return attributes.get("rdma") == "true" or (
        driver in ("dra.net", "dranet") and "ifName" in attributes and "pciAddress" in attributes
    )


def _is_gpu(attributes: Mapping[str, str], driver: str) -> bool:
    kind = attributes.get("type", "")
    if kind:
        return kind in ("gpu", "mig") or kind.startswith("amdgpu")
    return driver.startswith("gpu.") or "cudaComputeCapability" in attributes


def _gpu(attributes: Mapping[str, str], capacity: Mapping[str, Any], entry: Any) -> Device:
    profile = attributes.get("profile") or attributes.get("partitionProfile")
    sliced = attributes.get("type") in ("mig", "amdgpu-partition") or "parentUUID" in attributes
    facts = {
        "product": _product(attributes.get("productName"), profile if sliced else None),
        "uuid": attributes.get("uuid"),
        "pci": pci_address(
            attributes.get("resource.kubernetes.io/pciBusID")
            or attributes.get("pciBusID")
            or attributes.get("pcieBusID")
            or attributes.get("pciAddr")
            or attributes.get("parentPciAddr")
        ),
        "memory_bytes": parse_quantity(mapping(capacity, "memory").get("value")),
        "numa": whole_number(
            attributes.get("numaNode") or attributes.get("numa"), most=MAX_INDEX
        ),
        "mig": sliced if "type" in attributes or sliced else None,
    }
    faults = tuple(
        f"tainted by its driver: {text_of(taint.get('key')) or '?'}"
        for taint in mappings(entry.get("taints"))
        if taint.get("effect") in ("NoSchedule", "NoExecute")
    )
    sources = {key: SOURCE for key, value in facts.items() if value is not None}
    if faults:
        sources["faults"] = SOURCE
    return Device(
        index=0,
        product=facts["product"],
        uuid=facts["uuid"],
        memory_bytes=facts["memory_bytes"],
        numa=facts["numa"],
        pci=facts["pci"],
        mig=facts["mig"],
        faults=faults,
        sources=sources,
    )
