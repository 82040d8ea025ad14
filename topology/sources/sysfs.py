"""The network cards of this machine and how near each is to a GPU, from sysfs.

A PCI device's real path is its place in the tree: what two paths share tells how they are joined::

    /sys/devices/pci0000:15/0000:15:01.0/0000:16:00.0/0000:17:00.0/0000:18:00.0   GPU
    /sys/devices/pci0000:15/0000:15:01.0/0000:16:00.0/0000:17:01.0/0000:19:00.0   NIC
                 host bridge  root port    switch, up   switch, down  device

Same switch: PIX. More bridges between: PXB. Only the host bridge in common: PHB. Different host
bridges: NODE within one NUMA node, SYS across two.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from parctl.topology.model import Nic

SOURCE = "sysfs"
PCI_DEVICES = "bus/pci/devices"
_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_RATE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*Gb/sec")
MBIT_PER_GBIT = 1000


def read_nics(sysfs: Path) -> tuple[Nic, ...]:
    """RDMA devices, then network interfaces of cards without RDMA that are up."""
    rdma = [_rdma_nic(path) for path in _entries(sysfs / "class/infiniband")]
    taken = {nic.pci for nic in rdma if nic is not None and nic.pci is not None}
    plain = [_network_nic(path) for path in _entries(sysfs / "class/net")]
    found = [nic for nic in rdma if nic is not None]
    return tuple(found + [nic for nic in plain if nic is not None and nic.pci not in taken])


def pci_numa_node(sysfs: Path, pci: str) -> int | None:
    """NUMA node of a PCI device; None when the kernel does not know."""
    return _numa(sysfs / PCI_DEVICES / pci.lower())


def pci_code(sysfs: Path, one: str | None, two: str | None) -> str:
    """Link code between two PCI devices, `?` when either is not in sysfs."""
    if one is None or two is None:
        return "?"
    first, second = _place(sysfs, one), _place(sysfs, two)
    if not first or not second:
        return "?"
    shared = 0
    while shared < min(len(first), len(second)) and first[shared] == second[shared]:
        shared += 1
    if shared == 0:
        mine, theirs = pci_numa_node(sysfs, one), pci_numa_node(sysfs, two)
        if mine is None or theirs is None:
            return "?"
        return "NODE" if mine == theirs else "SYS"
    if shared == 1:  # the host bridge alone
        return "PHB"
    # behind one bridge each device is at most one more bridge away: the ports of one switch
    return "PIX" if max(len(first), len(second)) - shared <= 2 else "PXB"


def nic_matrix(
    sysfs: Path, devices: Sequence[str | None], nics: Sequence[Nic]
) -> tuple[tuple[str, ...], ...]:
    """Link code from every device (by PCI address) to every NIC; empty without NICs."""
    if not nics:
        return ()
    return tuple(tuple(pci_code(sysfs, device, nic.pci) for nic in nics) for device in devices)


def _place(sysfs: Path, pci: str) -> tuple[str, ...]:
    """Host bridge, bridges and the device, as the kernel nests them."""
    link = sysfs / PCI_DEVICES / pci.lower()
    try:
        parts = link.resolve(strict=True).parts
    except (OSError, RuntimeError):  # RuntimeError: links in a circle
        return ()
    return tuple(p for p in parts if (p.startswith("pci") and ":" in p) or _ADDRESS.fullmatch(p))


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _rdma_nic(path: Path) -> Nic | None:
    """An RDMA device with a port that is up, at the rate of its fastest port."""
    ports = [
        port
        for port in _entries(path / "ports")
        if "ACTIVE" in _text(port / "state") or not _text(port / "state")
    ]
    if not ports:
        return None
    rates = [float(m[1]) for port in ports if (m := _RATE.match(_text(port / "rate")))]
    return _nic(path, max(rates, default=None))


def _network_nic(path: Path) -> Nic | None:
    """An interface of a real PCI card (not a bridge, not a virtual one) that is up."""
    if _pci(path) is None or _text(path / "operstate") == "down":
        return None
    speed = _text(path / "speed")  # Mbit/s; -1 or an error while the link is down
    return _nic(path, int(speed) / MBIT_PER_GBIT if speed.isdecimal() and int(speed) else None)


def _nic(path: Path, speed: float | None) -> Nic:
    pci = _pci(path)
    facts = {"speed_gbit_s": speed, "numa": _numa(path / "device"), "pci": pci}
    return Nic(
        name=path.name,
        speed_gbit_s=speed,
        numa=_numa(path / "device"),
        pci=pci,
        rail=None,
        sources={"name": SOURCE}
        | {key: SOURCE for key, value in facts.items() if value is not None},
    )


def _pci(path: Path) -> str | None:
    """PCI address of the card that a class device sits on; a virtual or USB one has none."""
    try:
        parts = (path / "device").resolve(strict=True).parts
    except (OSError, RuntimeError):
        return None
    if any(part.startswith("usb") for part in parts):
        return None
    return next((part for part in reversed(parts) if _ADDRESS.fullmatch(part)), None)


def _numa(path: Path) -> int | None:
    text = _text(path / "numa_node")
    return int(text) if text.isdecimal() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
