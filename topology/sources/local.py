"""This machine as a topology: its GPUs when a driver is there, else slots for CPU ranks.

Discovery never imports torch and never opens a CUDA context: the launcher forks its ranks from a
process that must not have touched CUDA. GPUs are read through the vendors' libraries
(`sources.nvml`, `sources.amd`); CPUs, NUMA nodes and NICs from sysfs.
"""

import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from parctl.errors import CannotPlaceError, UsageError
from parctl.topology.model import Device, Hardware, Node, Topology
from parctl.topology.sources.sysfs import SOURCE, nic_matrix, read_nics

SYSFS = Path("/sys")
MAX_CPU_DEVICES = 1024
CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),  # v2
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),  # v1
)


def discover_local(num_devices: int | None = None) -> Topology:
    """Return this machine as a topology of one node, with `num_devices` of its devices."""
    hardware, domain, warnings = _read_gpus()
    unknown: list[str] = []
    if hardware is None:
        hardware, cpu_warnings = cpu_hardware(num_devices)
        warnings += cpu_warnings
    elif num_devices is not None:
        hardware = _first_devices(hardware, num_devices)
    hardware = with_nics(hardware, SYSFS)
    if hardware.kind == "cpu":
        unknown.append("links of this machine to others: not read, and not needed by one node")
    elif not hardware.nics:
        unknown.append("NICs: sysfs lists none")
    elif any("?" in row for row in hardware.nic_matrix):
        unknown.append("distance to the NICs: a PCI address is not in sysfs")
    node = Node(
        name=socket.gethostname() or "localhost",
        hardware=hardware,
        domain=domain,
        tiers=(),
        sources={"domain": "nvml"} if domain else {},
    )
    return Topology(
        name=node.name,
        source="local",
        tiers=(),
        nodes=(node,),
        warnings=tuple(warnings),
        unknown=tuple(unknown),
    )


def _read_gpus() -> tuple[Hardware | None, str | None, list[str]]:
    """GPUs of this machine, the NVLink domain they name, and warnings."""
    from parctl.topology.sources.amd import read_gpus as read_amd_gpus
    from parctl.topology.sources.nvml import read_gpus as read_nvidia_gpus

    found, warnings = read_nvidia_gpus()
    if found is not None:
        return *found, warnings
    hardware, more = read_amd_gpus(SYSFS)
    return hardware, None, warnings + more


def with_nics(hardware: Hardware, sysfs: Path) -> Hardware:
    """Add the NICs that sysfs lists, and their distance to each GPU."""
    nics = read_nics(sysfs)
    if not nics:
        return hardware
    is_gpu = hardware.kind == "gpu"
    pci = [device.pci for device in hardware.devices]
    return replace(
        hardware,
        nics=nics,
        nic_matrix=nic_matrix(sysfs, pci, nics) if is_gpu else (),
        sources={**hardware.sources, "nics": SOURCE} | ({"nic_matrix": SOURCE} if is_gpu else {}),
    )


def cpu_hardware(num_devices: int | None) -> tuple[Hardware, list[str]]:
    """CPU slots: one per core this process may use, or as many as asked for, and the warnings."""
    if num_devices is not None and not 1 <= num_devices <= MAX_CPU_DEVICES:
        raise UsageError(f"{num_devices} CPU devices asked for, expected 1 to {MAX_CPU_DEVICES}")
    cores = sorted(os.sched_getaffinity(0))
    count = num_devices or len(cores)
    warnings = []
    if count > len(cores):
        warnings.append(f"{count} CPU devices share {len(cores)} cores: slow, but correct")
    numa_of_core = _numa_of_core()
    memory = host_memory_bytes()
    devices = tuple(
        Device(
            index=i,
            product="cpu",
            uuid=None,
            memory_bytes=None if memory is None else memory // count,  # an equal share
            numa=numa_of_core.get(cores[i % len(cores)]),
            pci=None,
            sources={"product": "os", "memory_bytes": "os", "numa": "sysfs"},
        )
        for i in range(count)
    )
    matrix = tuple(tuple("X" if i == j else "HOST" for j in range(count)) for i in range(count))
    hardware = Hardware(
        kind="cpu",
        devices=devices,
        matrix=matrix,
        nics=(),
        nic_matrix=(),
        num_cpus=len(cores),
        memory_bytes=memory,
        sources={"matrix": "os", "num_cpus": "os", "memory_bytes": "os"},
    )
    return hardware, warnings


def host_memory_bytes() -> int | None:
    """Memory that processes of this machine or container may use together."""
    limits = []
    with suppress(OSError, ValueError):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in CGROUP_LIMITS:
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        if text.isdecimal():
            limits.append(int(text))
    return min(limits, default=None)


def parse_cpu_list(text: str) -> list[int]:
    """Read the kernel's list of CPUs.

    >>> parse_cpu_list("0-2,8")
    [0, 1, 2, 8]
    """
    cpus: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first.isdecimal():
            cpus += range(int(first), int(last or first) + 1)
    return cpus


def cpu_list_text(cpus: Sequence[int]) -> str:
    """Write CPUs as the kernel does.

    >>> cpu_list_text([0, 1, 2, 8])
    '0-2,8'
    """
    spans: list[list[int]] = []
    for cpu in sorted(cpus):
        if spans and cpu == spans[-1][1] + 1:
            spans[-1][1] = cpu
        else:
            spans.append([cpu, cpu])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def _numa_of_core() -> dict[int, int]:
    result: dict[int, int] = {}
    for path in (SYSFS / "devices/system/node").glob("node[0-9]*/cpulist"):
        numa = int(path.parent.name.removeprefix("node"))
        result |= dict.fromkeys(parse_cpu_list(path.read_text()), numa)
    return result


def _first_devices(hardware: Hardware, num_devices: int) -> Hardware:
    if not 1 <= num_devices <= len(hardware.devices):
        raise CannotPlaceError(
            f"{num_devices} devices asked for, this machine has {len(hardware.devices)} GPUs",
            hint=f"ask for {len(hardware.devices)} or fewer, or set CUDA_VISIBLE_DEVICES= "
            "to use the CPU",
        )
    return replace(
        hardware,
        devices=hardware.devices[:num_devices],
        matrix=tuple(row[:num_devices] for row in hardware.matrix[:num_devices]),
        nic_matrix=hardware.nic_matrix[:num_devices],
    )
