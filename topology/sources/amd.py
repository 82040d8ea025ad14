"""The GPUs of this machine as AMD's own library, amdsmi, reports them.

It comes with ROCm, so it is read when it can be imported and is no dependency. It tells how each
pair is joined: xGMI (one direct link of the mesh) or PCIe; for PCIe the kernel's tree says how far.
"""

import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from parctl.topology.model import Device, Hardware
from parctl.topology.products import find_product
from parctl.topology.sources.pci import pci_address
from parctl.topology.sources.sysfs import pci_code

SOURCE = "amdsmi"
# amdsmi's link types; the numbers are those of every release since ROCm 5
PCIE, XGMI = 1, 2
NOT_READ = (
    "AMD GPUs (/dev/kfd) are not read (`rocm-smi --showtopo > FILE` and `--from FILE` do without)"
)
MICROWATTS = 10**6
MASKS = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")


def read_gpus(sysfs: Path) -> tuple[Hardware | None, list[str]]:
    """Read this machine's AMD GPUs, and what is worth a warning; None when there are none."""
    has_driver = os.path.exists("/dev/kfd")
    if find_spec("amdsmi") is None:
        return None, [f"{NOT_READ}: the Python package amdsmi is not installed"] * has_driver
    try:
        import amdsmi  # type: ignore[import-not-found, unused-ignore]

        amdsmi.amdsmi_init()
    except Exception as error:  # the binding raises whatever its search for the library raises
        reason = (str(error).splitlines() or ["?"])[0][:200]
        return None, [f"{NOT_READ}: amdsmi: {type(error).__name__}: {reason}"] * has_driver
    try:
        handles = amdsmi.amdsmi_get_processor_handles()
        positions = _visible(len(handles))
        devices = tuple(_device(amdsmi, handles[i], i, sysfs) for i in positions)
        matrix = tuple(
            tuple(
                "X" if i == j else _code(amdsmi, handles[i], handles[j], sysfs, devices, (a, b))
                for b, j in enumerate(positions)
            )
            for a, i in enumerate(positions)
        )
    finally:
        amdsmi.amdsmi_shut_down()
    if not devices:
        return None, []
    warnings = [
        f"gpu {device.index}: {device.ecc_errors} uncorrected ECC errors"
        for device in devices
        if device.ecc_errors
    ]
    hardware = Hardware(
        kind="gpu",
        devices=devices,
        matrix=matrix,
        nics=(),
        nic_matrix=(),
        num_cpus=os.cpu_count(),
        memory_bytes=None,
        sources={"matrix": SOURCE, "num_cpus": "os"},
    )
    return hardware, warnings


def _visible(count: int) -> list[int]:
    """Positions left by the masks, each of which counts what the one before it left."""
    positions = list(range(count))
    for name in MASKS:
        mask = os.environ.get(name)
        if mask is None:
            continue
        chosen: list[int] = []
        for word in (word.strip() for word in mask.split(",")):
            if not word.isdecimal() or int(word) >= len(positions):
                break
            chosen.append(positions[int(word)])
        positions = list(dict.fromkeys(chosen))
        if name == "HIP_VISIBLE_DEVICES":
            break  # CUDA_VISIBLE_DEVICES is HIP's other name for it
    return sorted(positions)


def _device(smi: Any, handle: Any, index: int, sysfs: Path) -> Device:
    name = _word(_ask(smi, smi.amdsmi_get_gpu_asic_info, handle, key="market_name"))
    product = find_product(name) if name else None
    power = _ask(smi, smi.amdsmi_get_power_cap_info, handle, key="power_cap")
    vram = smi.AmdSmiMemoryType.VRAM
    numa = _ask(smi, smi.amdsmi_topo_get_numa_node_number, handle)
    facts: dict[str, Any] = {
        "product": product.key if product else name,
        "uuid": _word(_ask(smi, smi.amdsmi_get_gpu_device_uuid, handle)),
        "memory_bytes": _count(_ask(smi, smi.amdsmi_get_gpu_memory_total, handle, vram)),
        "numa": _count(numa),
        "pci": pci_address(_word(_ask(smi, smi.amdsmi_get_gpu_device_bdf, handle))),
        "ecc_errors": _count(
            _ask(smi, smi.amdsmi_get_gpu_total_ecc_count, handle, key="uncorrectable_count")
        ),
        "power_limit_w": power / MICROWATTS if isinstance(power, int) else None,
    }
    sources = {key: SOURCE for key, value in facts.items() if value is not None}
    return Device(index=index, sources=sources, **facts)


def _code(
    smi: Any,
    one: Any,
    two: Any,
    sysfs: Path,
    devices: Sequence[Device],
    pair: tuple[int, int],
) -> str:
    kind = _ask(smi, smi.amdsmi_topo_get_link_type, one, two, key="type")
    if kind == XGMI:
        return "XGMI"
    a, b = (devices[position].pci for position in pair)
    return pci_code(sysfs, a, b) if kind == PCIE else "?"


def _ask(smi: Any, call: Callable[..., Any], *arguments: Any, key: str | None = None) -> Any:
    """Return what amdsmi says, or None where this GPU or driver does not support it."""
    try:
        value = call(*arguments)
    except smi.AmdSmiException:
        return None
    return value.get(key) if key is not None else value


def _word(value: Any) -> str | None:
    """Text that means something: amdsmi writes N/A for what it does not know."""
    return value if isinstance(value, str) and value not in ("", "N/A") else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None
