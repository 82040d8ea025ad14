"""One Kubernetes node: what its status, slices, annotations and labels say of its devices.

Extended resources count, they do not name: eight `nvidia.com/gpu` are eight devices of unknown
address. Where ResourceSlices or a vendor's annotation list as many, those say which they are.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from parctl.topology.document import mapping, mappings, text_of, whole_number
from parctl.topology.model import Device, Hardware, Nic
from parctl.topology.products import find_product
from parctl.topology.sources.kubernetes_labels import Labels, label, product_of
from parctl.topology.sources.kubernetes_slices import NodeDevices
from parctl.topology.sources.plain import cpu_slots, gpu_hardware
from parctl.topology.sources.quantity import parse_quantity

STATUS, LABEL, ANNOTATION, SLICE = "k8s-status", "k8s-label", "k8s-annotation", "k8s-slice"
WHOLE_GPUS = ("nvidia.com/gpu", "nvidia.com/gpu.shared", "amd.com/gpu")
MIG_PREFIX = "nvidia.com/mig-"
HAMI = "hami.io/node-nvidia-register"
HAMI_FIELDS = 7  # uuid, shares, MiB, cores, type, NUMA node, healthy
CONTROL_PLANE = "node-role.kubernetes.io/control-plane"
# names that only Google's accelerator label uses
GKE_NAMES = {
    "nvidia-h100-80gb": "h100",
    "nvidia-h100-mega-80gb": "h100",
    "nvidia-h200-141gb": "h200",
}
MAX_DEVICES = 1024  # of one node
MIB = 2**20


@dataclass(slots=True, kw_only=True)
class NodeFacts:
    """A node as read, before it becomes part of a topology."""

    name: str
    labels: Labels
    product: str | None
    devices: list[Device]
    nics: list[Nic] = field(default_factory=list)
    roots: tuple[Sequence[str | None], Sequence[str | None]] = ((), ())  # of devices, of NICs
    num_cpus: int | None = None
    memory_bytes: int | None = None
    is_control_plane: bool = False
    faults: tuple[str, ...] = ()  # of the node as a whole, which its devices share
    warnings: list[str] = field(default_factory=list)  # sentences without the node's name
    missing: list[str] = field(default_factory=list)


def gather(node: Mapping[str, Any], slices: Mapping[str, NodeDevices]) -> NodeFacts:
    """Collect the facts of one Node object and its slices."""
    metadata = mapping(node, "metadata")
    labels = mapping(metadata, "labels")
    name = text_of(metadata.get("name")) or label(labels, "kubernetes.io/hostname") or "node-0"
    allocatable = mapping(node, "status", "allocatable")
    found = slices.get(name, NodeDevices())
    facts = NodeFacts(
        name=name,
        labels=labels,
        product=_product(labels),
        devices=[],
        nics=list(found.nics),
        num_cpus=parse_quantity(allocatable.get("cpu")),
        memory_bytes=parse_quantity(allocatable.get("memory")),
        is_control_plane=any(
            taint.get("key") == CONTROL_PLANE and taint.get("effect") == "NoSchedule"
            for taint in mappings(mapping(node, "spec").get("taints"))
        ),
        missing=list(found.missing),
    )
    annotated = _hami_devices(text_of(mapping(metadata, "annotations").get(HAMI)), facts)
    _count_devices(facts, node, found, annotated)
    faults = tuple(_node_faults(node))
    if faults:
        facts.faults = faults
        facts.devices = [_with_faults(device, faults) for device in facts.devices]
        facts.warnings += [f"not used, since the {fault}" for fault in faults]
    return facts


def hardware_of(facts: NodeFacts) -> Hardware:
    """The inside of the node. A node of a cluster without GPUs gets one slot per CPU."""
    if not facts.devices and facts.num_cpus:
        return cpu_slots(facts.num_cpus, facts.memory_bytes, source=STATUS)
    hardware = gpu_hardware(
        facts.devices,
        source=STATUS,
        num_cpus=facts.num_cpus,
        memory_bytes=facts.memory_bytes,
        nics=facts.nics,
        nic_matrix=_nic_matrix(facts) if facts.nics else (),
    )
    if not facts.nics:
        return hardware
    return replace(hardware, sources={**hardware.sources, "nics": SLICE, "nic_matrix": SLICE})


def with_node_faults(hardware: Hardware, faults: tuple[str, ...]) -> Hardware:
    """The hardware with the node's own faults on every device."""
    if not faults:
        return hardware
    devices = tuple(_with_faults(device, faults) for device in hardware.devices)
    return replace(hardware, devices=devices)


def _count_devices(
    facts: NodeFacts,
    node: Mapping[str, Any],
    found: NodeDevices,
    annotated: Sequence[Device],
) -> None:
    allocatable = mapping(node, "status", "allocatable")
    counts = [
        whole_number(allocatable[key], most=10**6) for key in WHOLE_GPUS if key in allocatable
    ]
    whole = sum(count or 0 for count in counts)
    whole = _unshared(whole, facts)
    slices = _mig_devices(facts, allocatable, STATUS)
    listed, source = (found.devices, SLICE) if found.devices else (list(annotated), ANNOTATION)
    if whole or slices:
        if len(listed) == whole + len(slices):
            _use_listed(facts, listed, found)
            return
        if listed:
            facts.warnings.append(
                f"{whole + len(slices)} GPUs are allocatable ({STATUS}), {len(listed)} are listed "
                f"({source}): which of them can be used is not known"
            )
        facts.devices = [*_plain_devices(facts, whole, STATUS), *slices]
        _warn_of_capacity(facts, node, whole)
    elif listed:
        _use_listed(facts, listed, found)
    else:
        slices = _mig_devices(facts, facts.labels, LABEL)
        count = 0 if slices else _labelled_count(facts.labels)
        facts.devices = [*_plain_devices(facts, count, LABEL), *slices]
        if facts.devices and allocatable:
            what = "0" if counts else "absent"
            fault = f"allocatable `nvidia.com/gpu` is {what}"
            facts.devices = [_with_faults(device, (fault,)) for device in facts.devices]
            facts.warnings.append(
                f"labels name {len(facts.devices)} GPUs, but {fault}: is the device plugin running?"
            )
    has_gpus = any(
        isinstance(key, str) and key.startswith(("nvidia.com/gpu", "amd.com/gpu"))
        for key in facts.labels
    )
    if has_gpus and not facts.devices and not allocatable:
        facts.missing.append(f"GPUs of {facts.name}: how many there are")


def _use_listed(facts: NodeFacts, listed: Sequence[Device], found: NodeDevices) -> None:
    """Take devices that are named, and fill what the list leaves out from the labels."""
    facts.devices = [_completed(device, facts) for device in listed]
    if found.devices:
        facts.roots = (found.device_roots, found.nic_roots)
    if any(device.mig for device in facts.devices):
        facts.warnings.append("MIG is on: ranks get slices, which have no NVLink")


def _completed(device: Device, facts: NodeFacts) -> Device:
    if device.product is not None or facts.product is None:
        return device
    return replace(device, product=facts.product, sources={**device.sources, "product": LABEL})


def _plain_devices(facts: NodeFacts, count: int, source: str) -> list[Device]:
    """Devices of which only the number is known, and what the labels say of all of them."""
    if count > MAX_DEVICES:
        facts.warnings.append(f"{count} GPUs are more than {MAX_DEVICES}: the rest is left out")
        count = MAX_DEVICES
    memory = _labelled_memory(facts.labels)
    single = _is_mig_single(facts.labels)
    if single and count:
        facts.warnings.append("MIG is on: ranks get slices, which have no NVLink")
    sources = {"index": source}
    sources |= {"product": LABEL} if facts.product else {}
    sources |= {"memory_bytes": LABEL} if memory is not None else {}
    sources |= {"mig": LABEL} if single else {}
    device = Device(
        index=0,
        product=facts.product,
        uuid=None,
        memory_bytes=memory,
        numa=None,
        pci=None,
        mig=True if single else None,
        sources=sources,
    )
    return [replace(device, index=index) for index in range(count)]


def _mig_devices(facts: NodeFacts, table: Mapping[str, Any], source: str) -> list[Device]:
    """Slices by profile, from `nvidia.com/mig-1g.5gb: 4` or `nvidia.com/mig-1g.5gb.count: 4`."""
    devices: list[Device] = []
    for key in sorted(key for key in table if isinstance(key, str)):
        if not key.startswith(MIG_PREFIX):
            continue
        profile = key.removeprefix(MIG_PREFIX)
        if source == LABEL:
            if not profile.endswith(".count"):
                continue
            profile = profile.removesuffix(".count")
        memory = whole_number(facts.labels.get(f"{MIG_PREFIX}{profile}.memory"), most=2**32)
        count = whole_number(table[key], most=MAX_DEVICES - len(devices)) or 0
        devices += [
            Device(
                index=len(devices) + i,
                product=f"{facts.product or 'GPU'} MIG {profile}",
                uuid=None,
                memory_bytes=None if memory is None else memory * MIB,
                numa=None,
                pci=None,
                mig=True,
                sources={"index": source, "product": source, "mig": source}
                | ({} if memory is None else {"memory_bytes": LABEL}),
            )
            for i in range(count)
        ]
    if devices:
        facts.warnings.append("MIG is on: ranks get slices, which have no NVLink")
    return devices


def _unshared(count: int, facts: NodeFacts) -> int:
    """Undo time slicing, which announces every GPU several times."""
    replicas = whole_number(facts.labels.get("nvidia.com/gpu.replicas"), most=10**6) or 1
    if replicas == 1 or not count:
        return count
    facts.warnings.append(f"every GPU is announced {replicas} times (shared in time)")
    return -(-count // replicas)


def _warn_of_capacity(facts: NodeFacts, node: Mapping[str, Any], usable: int) -> None:
    capacity = mapping(node, "status", "capacity")
    total = _unshared_count(capacity, facts.labels)
    if total > usable:
        facts.warnings.append(f"{total - usable} of {total} GPUs are not allocatable")


def _unshared_count(capacity: Mapping[str, Any], labels: Labels) -> int:
    replicas = whole_number(labels.get("nvidia.com/gpu.replicas"), most=10**6) or 1
    total = sum(whole_number(capacity.get(key), most=10**6) or 0 for key in WHOLE_GPUS)
    return -(-total // replicas)


def _product(labels: Labels) -> str | None:
    named = product_of(labels)
    if named is None:
        return None
    name = named[0].removesuffix("-SHARED")
    found = find_product(GKE_NAMES.get(name, name))
    return found.key if found else name


def _is_mig_single(labels: Labels) -> bool:
    config = label(labels, "nvidia.com/mig.config") or ""
    product = label(labels, "nvidia.com/gpu.product") or ""
    return "-MIG-" in product or (
        config.startswith("all-") and config not in ("all-disabled", "all-balanced")
    )


def _labelled_memory(labels: Labels) -> int | None:
    mebibytes = whole_number(labels.get("nvidia.com/gpu.memory"), most=2**32)
    if mebibytes is not None:
        return mebibytes * MIB
    # ROCm's labeller writes 64G for 64 GiB
    amd = label(labels, "amd.com/gpu.vram") or label(labels, "beta.amd.com/gpu.vram")
    return parse_quantity(f"{amd}i") if amd and amd[-1:] in "MGT" else None


def _labelled_count(labels: Labels) -> int:
    for key in ("nvidia.com/gpu.count", "cloud.google.com/gke-accelerator-count"):
        count = whole_number(labels.get(key), most=10**6)
        if count is not None:
            return count
    for key, value in labels.items():  # beta.amd.com/gpu.family.AI: "8" counts the GPUs of a family
        if isinstance(key, str) and key.startswith("beta.amd.com/gpu.") and key.count(".") >= 4:
            return whole_number(value, most=10**6) or 0
    return 0


def _hami_devices(text: str | None, facts: NodeFacts) -> list[Device]:
    """Devices of HAMi's annotation: entries of seven fields, each ended by a colon."""
    devices: list[Device] = []
    *entries, rest = (text or "").split(":")
    for entry in entries[:MAX_DEVICES]:
        fields = entry.split(",")
        if len(fields) < HAMI_FIELDS:
            rest = entry
            continue
        name = fields[4].removeprefix("NVIDIA-")
        found = find_product(name)
        memory = whole_number(fields[2], most=2**32)
        healthy = fields[6].strip().lower() != "false"
        devices.append(
            Device(
                index=len(devices),
                product=found.key if found else name,
                uuid=fields[0].strip(),
                memory_bytes=None if memory is None else memory * MIB,
                numa=whole_number(fields[5], most=4096),
                pci=None,
                faults=() if healthy else ("unhealthy, says its device plugin",),
                sources=dict.fromkeys(("product", "uuid", "memory_bytes", "numa"), ANNOTATION),
            )
        )
    if rest.strip():
        facts.missing.append(f"GPUs of {facts.name} after the first {len(devices)}: cut")
    return devices


def _nic_matrix(facts: NodeFacts) -> tuple[tuple[str, ...], ...]:
    """Under one PCIe root a pair is at worst a host bridge apart; across roots nothing is said."""
    device_roots, nic_roots = facts.roots
    return tuple(
        tuple("PHB" if root is not None and root == other else "?" for other in nic_roots)
        for root in device_roots
    ) or tuple(tuple("?" for _ in facts.nics) for _ in facts.devices)


def _node_faults(node: Mapping[str, Any]) -> Iterator[str]:
    if mapping(node, "spec").get("unschedulable") is True:
        yield "node is cordoned"
    for condition in mappings(mapping(node, "status").get("conditions")):
        if condition.get("type") == "Ready" and condition.get("status") != "True":
            yield "node is not Ready"


def _with_faults(device: Device, faults: tuple[str, ...]) -> Device:
    return replace(
        device,
        faults=(*device.faults, *faults),
        sources={**device.sources, "faults": STATUS},
    )
