"""ResourceSlices: the devices that Kubernetes' dynamic resource allocation drivers announce.

`resource.k8s.io/v1` has a device's attributes beside its name, `v1beta1` has them under `basic`.
Attribute names may carry the driver's domain (`gpu.nvidia.com/uuid`) or not (`uuid`). A pool is
published anew under a higher generation; only the newest counts.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from parctl.topology.document import mapping, mappings, text_of, whole_number
from parctl.topology.model import Device, Nic
from parctl.topology.products import find_product
from parctl.topology.sources.pci import pci_address
from parctl.topology.sources.quantity import parse_quantity

SOURCE = "k8s-slice"
PCIE_ROOT = "resource.kubernetes.io/pcieRoot"
PCI_KEYS = (
    "resource.kubernetes.io/pciBusID",
    "pciBusID",
    "pcieBusID",
    "pciAddr",
    "parentPciAddr",
)
NIC_DRIVERS = ("dra.net", "dranet")
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
    strange: Counter[str] = Counter()
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
        elif "type" not in attributes and driver not in NIC_DRIVERS:
            strange[driver] += 1
    found.missing += [
        f"{node}: kind of {number} devices of driver {driver}: no attribute says GPU or NIC"
        for driver, number in sorted(strange.items())
    ]
    gpus.sort(key=lambda gpu: gpu[0])
    indexes = [index for _, index, _, _ in gpus]
    numbered = None not in indexes and len(set(indexes)) == len(indexes)
    if numbered:
        gpus.sort(key=lambda gpu: gpu[1] or 0)
    for position, (_, index, device, root) in enumerate(gpus):
        number = index if numbered and index is not None else position
        found.devices.append(replace(device, index=number))
        found.device_roots.append(root)


def _attributes(content: Mapping[str, Any]) -> dict[str, str]:
    """Values as text by name, and by name without the driver's domain."""
    result: dict[str, str] = {}
    for key, value in mapping(content, "attributes").items():
        for scalar in mapping(value).values():
            text = str(scalar).lower() if isinstance(scalar, bool) else text_of(scalar)
            if text is not None:
                result[str(key)] = text
                result.setdefault(str(key).rpartition("/")[2], text)
    return result


def _is_nic(attributes: Mapping[str, str], driver: str) -> bool:
    if attributes.get("virtual") == "true" or attributes.get("type") in ("veth", "lo", "bridge"):
        return False
    return attributes.get("rdma") == "true" or (
        driver in NIC_DRIVERS and "ifName" in attributes and "pciAddress" in attributes
    )


def _is_gpu(attributes: Mapping[str, str], driver: str) -> bool:
    kind = attributes.get("type", "")
    if kind:
        return kind in ("gpu", "mig") or kind.startswith("amdgpu")
    return driver.startswith("gpu.") or "cudaComputeCapability" in attributes


def _gpu(attributes: Mapping[str, str], capacity: Mapping[str, Any], entry: Any) -> Device:
    is_mig = attributes.get("type") == "mig" or "parentUUID" in attributes
    is_part = is_mig or attributes.get("type") == "amdgpu-partition"
    profile = attributes.get("profile") or attributes.get("partitionProfile")
    faults = tuple(
        f"tainted by its driver: {text_of(taint.get('key')) or '?'}"
        for taint in mappings(entry.get("taints"))
        if taint.get("effect") in ("NoSchedule", "NoExecute")
    )
    device = Device(
        index=0,
        product=_product(attributes.get("productName"), profile if is_part else None),
        uuid=attributes.get("uuid"),
        memory_bytes=parse_quantity(mapping(capacity, "memory").get("value")),
        numa=whole_number(attributes.get("numaNode") or attributes.get("numa"), most=MAX_INDEX),
        pci=pci_address(next((attributes[key] for key in PCI_KEYS if key in attributes), None)),
        mig=True if is_mig else False if attributes.get("type") == "gpu" else None,
        faults=faults,
    )
    facts = ("product", "uuid", "memory_bytes", "numa", "pci", "mig", "faults")
    known = [fact for fact in facts if getattr(device, fact) not in (None, ())]
    return replace(device, sources=dict.fromkeys(known, SOURCE))


def _nic(attributes: Mapping[str, str], name: str) -> Nic:
    speed = whole_number(attributes.get("linkSpeed") or attributes.get("speed"), most=10**7)
    nic = Nic(
        name=attributes.get("rdmaDevName") or attributes.get("ifName") or name,
        speed_gbit_s=speed / 1000 if speed else None,  # Mbit/s, as ethtool has it
        numa=whole_number(attributes.get("numaNode") or attributes.get("numa"), most=MAX_INDEX),
        pci=pci_address(attributes.get("pciAddress") or attributes.get("pciBusID")),
        rail=None,
    )
    known = [f for f in ("name", "speed_gbit_s", "numa", "pci") if getattr(nic, f) is not None]
    return replace(nic, sources=dict.fromkeys(known, SOURCE))


def _product(name: str | None, part: str | None) -> str | None:
    """Key of the product; a slice is no whole device, so it keeps the vendor's words."""
    if name is None:
        return part
    if part is not None:
        return f"{name} {part}"
    found = find_product(name)
    return found.key if found else name
