"""The GPUs of this machine as NVML, the driver's own library, reports them.

What decides a layout: which NVLinks are up, and where each ends (a switch, or another GPU). Two
GPUs behind switches are joined by as many links as the lesser of them has up; a GPU whose links
are all down is joined by PCIe only, whatever its product should be able to do. GPUs of one node
that registered with an NVLink fabric name the rack-scale domain they belong to.
"""

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from parctl.topology.model import Device, Hardware
from parctl.topology.products import find_product
from parctl.topology.sources.local import SYSFS, cpu_list_text, host_memory_bytes
from parctl.topology.sources.sysfs import pci_numa_node

# NVML_TOPOLOGY_* levels of two devices' common PCIe ancestor
ANCESTORS = {0: "PIX", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}
# fields that Gpu and Device have in common
FACTS = (
    "uuid",
    "memory_bytes",
    "numa",
    "pci",
    "cpu_affinity",
    "mig",
    "ecc_errors",
    "remapped_rows",
    "power_limit_w",
)
SWITCH = 2  # NVML_NVLINK_DEVICE_TYPE_SWITCH
AFFINITY_WORDS = 64  # of 64 CPUs each
FABRIC_COMPLETE = 3  # NVML_GPU_FABRIC_STATE_COMPLETED


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU as read; a lost one has only its index and the driver's complaint."""

    index: int
    name: str | None
    uuid: str | None
    pci: str | None
    memory_bytes: int | None
    numa: int | None
    cpu_affinity: str | None
    mig: bool | None
    ecc_errors: int | None
    remapped_rows: int | None
    power_limit_w: float | None
    links_up: int
    links_total: int
    switch_links: int
    peer_links: dict[str, int]  # PCI address of the peer -> links that end there
    ancestors: tuple[int | None, ...]  # level to every device index
    domain: str | None  # CLUSTER_UUID.CLIQUE
    faults: tuple[str, ...]
    warnings: tuple[str, ...]


def read_gpus() -> tuple[tuple[Hardware, str | None] | None, list[str]]:
    """Read this machine's GPUs: (hardware, NVLink domain), or None when there is none to use."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        if os.path.exists("/dev/nvidiactl"):
            return None, [f"an NVIDIA driver is loaded but NVML does not answer: {error}"]
        return None, []
    try:
        gpus = [_read_gpu(pynvml, i) for i in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()
    gpus = _visible(gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
    if not gpus:
        return None, []
    warnings = [warning for gpu in gpus for warning in gpu.warnings]
    domains = {gpu.domain for gpu in gpus}
    if len(domains) > 1:
        warnings.append(
            f"the GPUs of this node name {len(domains)} NVLink domains; none of them is used"
        )
    domain = domains.pop() if len(domains) == 1 else None
    return (_hardware(gpus), domain), warnings


def _visible(gpus: Sequence[Gpu], mask: str | None) -> list[Gpu]:
    """Apply CUDA_VISIBLE_DEVICES as CUDA does: indexes or UUID prefixes, up to the first wrong."""
    if mask is None:
        return list(gpus)
    chosen: list[Gpu] = []
    for word in (word.strip() for word in mask.split(",")):
        gpu = next(
            (
                gpu
                for gpu in gpus
                if word == str(gpu.index) or (word and gpu.uuid and gpu.uuid.startswith(word))
            ),
            None,
        )
        if gpu is None or gpu in chosen:
            break
        chosen.append(gpu)
    return sorted(chosen, key=lambda gpu: gpu.index)


def _read_gpu(nvml: Any, index: int) -> Gpu:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        name = _text(nvml.nvmlDeviceGetName(handle))
        uuid = _text(nvml.nvmlDeviceGetUUID(handle))
        pci = _pci_address(nvml.nvmlDeviceGetPciInfo(handle))
    except nvml.NVMLError as error:
        return _lost(index, str(error))
    up, total, switch, peers = _read_links(nvml, handle)
    warnings = []
    product = find_product(name)
    if total and not up:
        warnings.append(f"gpu {index}: all {total} NVLinks are down; it is reached by PCIe only")
    elif up < total and product is not None and product.links is not None and up < product.links:
        warnings.append(f"gpu {index}: {up} of {total} NVLinks are up")
    errors = _ask(nvml, nvml.nvmlDeviceGetTotalEccErrors, handle, 1, 0)
    if errors:
        warnings.append(f"gpu {index}: {errors} uncorrected ECC errors since the driver started")
    mig = _ask(nvml, nvml.nvmlDeviceGetMigMode, handle)
    if mig and mig[0]:
        warnings.append(f"gpu {index}: MIG is on; the whole GPU is shown, not its slices")
    rows = _ask(nvml, nvml.nvmlDeviceGetRemappedRows, handle)
    if rows and (rows[2] or rows[3]):
        state = "has failed" if rows[3] else "waits for a reset of the GPU"
        warnings.append(f"gpu {index}: remapping of memory rows {state}")
    memory = _ask(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
    power = _ask(nvml, nvml.nvmlDeviceGetPowerManagementLimit, handle)
    return Gpu(
        index=index,
        name=name,
        uuid=uuid,
        pci=pci,
        memory_bytes=memory.total if memory else None,
        numa=_read_numa(nvml, handle, pci),
        cpu_affinity=_read_cpu_affinity(nvml, handle),
        mig=bool(mig[0]) if mig else None,
        ecc_errors=errors,
        remapped_rows=rows[0] + rows[1] if rows else None,
        power_limit_w=power / 1000 if power else None,  # NVML counts milliwatts
        links_up=up,
        links_total=total,
        switch_links=switch,
        peer_links=peers,
        ancestors=_read_ancestors(nvml, handle),
        domain=_read_domain(nvml, handle),
        faults=(),
        warnings=tuple(warnings),
    )


def _lost(index: int, complaint: str) -> Gpu:
    return Gpu(
        index=index,
        name=None,
        uuid=None,
        pci=None,
        memory_bytes=None,
        numa=None,
        cpu_affinity=None,
        mig=None,
        ecc_errors=None,
        remapped_rows=None,
        power_limit_w=None,
        links_up=0,
        links_total=0,
        switch_links=0,
        peer_links={},
        ancestors=(),
        domain=None,
        faults=(f"NVML: {complaint}",),
        warnings=(f"gpu {index} is not usable: {complaint}",),
    )


def _read_links(nvml: Any, handle: Any) -> tuple[int, int, int, dict[str, int]]:
    """Links up, links in all, links up that end at a switch, links up by peer GPU."""
    up = total = switch = 0
    peers: dict[str, int] = {}
    for link in range(nvml.NVML_NVLINK_MAX_LINKS):
        try:
            active = nvml.nvmlDeviceGetNvLinkState(handle, link)
        except nvml.NVMLError:
            break  # past the last link of this product
        total += 1
        if not active:
            continue
        up += 1
        if _ask(nvml, nvml.nvmlDeviceGetNvLinkRemoteDeviceType, handle, link) == SWITCH:
            switch += 1
        elif info := _ask(nvml, nvml.nvmlDeviceGetNvLinkRemotePciInfo, handle, link):
            peer = _pci_address(info)
            peers[peer] = peers.get(peer, 0) + 1
    return up, total, switch, peers


def _read_ancestors(nvml: Any, handle: Any) -> tuple[int | None, ...]:
    levels: list[int | None] = []
    for other in range(nvml.nvmlDeviceGetCount()):
        try:
            peer = nvml.nvmlDeviceGetHandleByIndex(other)
            levels.append(nvml.nvmlDeviceGetTopologyCommonAncestor(handle, peer))
        except nvml.NVMLError:
            levels.append(None)
    return tuple(levels)


def _read_numa(nvml: Any, handle: Any, pci: str) -> int | None:
    scope = nvml.NVML_AFFINITY_SCOPE_NODE
    words = _ask(nvml, nvml.nvmlDeviceGetMemoryAffinity, handle, 4, scope)
    for position, word in enumerate(words or ()):
        if word:
            lowest: int = (word & -word).bit_length() - 1
            return position * 64 + lowest
    return pci_numa_node(SYSFS, pci)


def _read_cpu_affinity(nvml: Any, handle: Any) -> str | None:
    """CPUs near the GPU, as the kernel writes a list; None when the driver names none."""
    words = _ask(nvml, nvml.nvmlDeviceGetCpuAffinity, handle, AFFINITY_WORDS)
    cpus = [
        position * 64 + bit
        for position, word in enumerate(words or ())
        for bit in range(64)
        if word >> bit & 1
    ]
    return cpu_list_text(cpus) or None


def _read_domain(nvml: Any, handle: Any) -> str | None:
    """Return `CLUSTER_UUID.CLIQUE` once the GPU has joined a fabric; an all-zero id is none."""
    info = nvml.c_nvmlGpuFabricInfo_v3_t()
    try:
        nvml.nvmlDeviceGetGpuFabricInfoV(handle, ctypes.byref(info))
    except nvml.NVMLError:
        return None
    identity = bytes(info.clusterUuid)
    if info.state != FABRIC_COMPLETE or not any(identity):
        return None
    # as the node label nvidia.com/gpu.clique writes it, so that the two can be compared
    return f"{UUID(bytes=identity)}.{info.cliqueId}"


def _hardware(gpus: Sequence[Gpu]) -> Hardware:
    return Hardware(
        kind="gpu",
        devices=tuple(map(_device, gpus)),
        matrix=tuple(tuple(_code(a, b) for b in gpus) for a in gpus),
        nics=(),
        nic_matrix=(),
        num_cpus=os.cpu_count(),
        memory_bytes=host_memory_bytes(),
        sources={"matrix": "nvml", "num_cpus": "os", "memory_bytes": "os"},
    )


def _device(gpu: Gpu) -> Device:
    facts: dict[str, Any] = {name: getattr(gpu, name) for name in FACTS}
    facts["product"] = _product_name(gpu.name)
    sources = {fact: "nvml" for fact, value in facts.items() if value is not None}
    if gpu.faults:
        sources["faults"] = "nvml"
    return Device(index=gpu.index, faults=gpu.faults, sources=sources, **facts)


def _code(a: Gpu, b: Gpu) -> str:
    if a.index == b.index:
        return "X"
    links = min(a.switch_links, b.switch_links)
    if b.pci is not None:
        links = a.peer_links.get(b.pci, 0) or links
    if links:
        return f"NV{links}"
    level = a.ancestors[b.index] if b.index < len(a.ancestors) else None
    return "?" if level is None else ANCESTORS.get(level, "?")


def _product_name(name: str | None) -> str | None:
    product = find_product(name) if name else None
    return product.key if product else name


def _pci_address(info: Any) -> str:
    """`0000:1b:00.0`, as sysfs writes it; NVML's own text has eight digits of domain."""
    return f"{info.domain:04x}:{info.bus:02x}:{info.device:02x}.0"


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _ask(nvml: Any, call: Any, *arguments: Any) -> Any:
    """Return what an NVML call says, or None where this GPU or driver does not support it."""
    try:
        return call(*arguments)
    except nvml.NVMLError:
        return None
