"""The elements of an NCCL topology file as PCI devices by host.

Read with the plain expat parser, element by element: a file that was cut is read up to there, depth
and size are bounded. Reading begins at `<system>`, so a document type, which could declare entities
that grow, is never read.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from xml.parsers import expat

from parctl.errors import UsageError
from parctl.topology.sources.capture import MAX_DEVICES, too_many
from parctl.topology.sources.pci import pci_address

GPU_CLASSES = ("0x0302", "0x0380", "0x1200")
VGA_CLASS = "0x0300"
GPU_VENDORS = ("0x10de", "0x1002")
NIC_CLASSES = ("0x0200", "0x0207")
BRIDGE_CLASSES = ("0x0604", "0x0680")
MAX_DEPTH = 64

_MASK = re.compile(r"[0-9a-fA-F]{1,8}(?:,[0-9a-fA-F]{1,8}){0,255}")


@dataclass(slots=True, kw_only=True)
class Pci:
    """One `<pci>`, and what hangs in it."""

    address: str  # `?...` where the file gives none
    attributes: Mapping[str, str]
    path: tuple[str, ...]  # addresses of the bridges above it, nearest last
    numa: int | None
    cpus: str | None
    gpu: Mapping[str, str] | None = None
    links: list[tuple[str, str, int, str]] = field(
        default_factory=list
    )  # tag, target, count, class
    nets: list[Mapping[str, str]] = field(default_factory=list)
    has_children: bool = False
    closed: bool = False  # its end was reached: nothing of it was cut off

    def is_a(self, classes: Sequence[str]) -> bool:
        return self.attributes.get("class", "").lower().startswith(tuple(classes))

    @property
    def known_address(self) -> str | None:
        return pci_address(self.address)

    @property
    def is_gpu(self) -> bool:
        if self.gpu is not None:
            return True
        vendor = self.attributes.get("vendor", "").lower()
        if vendor in GPU_VENDORS:
            return self.is_a((*GPU_CLASSES, VGA_CLASS))
        return not vendor and self.is_a(GPU_CLASSES)  # a VGA of no vendor is a server's console

    @property
    def is_nic(self) -> bool:
        return bool(self.nets) or self.is_a(NIC_CLASSES)


@dataclass(slots=True, kw_only=True)
class Host:
    """One machine of the file; only fused files of rack-scale systems have several."""

    name: str
    devices: dict[str, Pci] = field(default_factory=dict)
    loose_nets: list[tuple[int | None, Mapping[str, str]]] = field(default_factory=list)


class TreeParser:
    """Collects the devices of a file. `stopped` is where and why reading ended early."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.hosts: dict[str, Host] = {}
        self.lines_before = 0
        self.stopped: tuple[int, str] | None = None
        self.stack: list[tuple[str, Pci | None]] = []
        self.host: Host | None = None
        self.numa: int | None = None
        self.cpus: str | None = None
        self.expat = expat.ParserCreate()
        self.expat.StartElementHandler = self.start
        self.expat.EndElementHandler = self.end

    def parse(self, text: str) -> None:
        """Read the `<system>` of a text, whatever stands around it."""
        start = text.rfind("<system", 0, max(text.find("<cpu"), 0))
        start = max(start, 0)
        end = text.find("</system>", start)
        self.lines_before = text.count("\n", 0, start)
        body = text[start:] if end < 0 else text[start : end + len("</system>")]
        try:
            self.expat.Parse(body.encode(errors="replace"), True)
        except expat.ExpatError as error:
            line = error.lineno + self.lines_before
            self.stopped = (line, expat.ErrorString(error.code))

    @property
    def line(self) -> int:
        """Line of the text that is being read."""
        return self.expat.CurrentLineNumber + self.lines_before

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        pci = next((pci for _, pci in reversed(self.stack) if pci is not None), None)
        here: Pci | None = None
        if len(self.stack) > MAX_DEPTH:
            raise UsageError(f"{self.name}:{self.line}: elements nested more than {MAX_DEPTH} deep")
        if tag == "cpu":
            self.numa = whole_number(attributes.get("numaid"))
            self.cpus = cpu_list(attributes.get("affinity", ""))
            key = attributes.get("host_hash", "")
            self.host = self.hosts.setdefault(key, Host(name=key))
        elif self.host is None:
            pass
        elif tag == "pci":
            here = self._pci(attributes, pci)
        elif tag == "gpu" and pci is not None:
            pci.gpu = attributes
        elif tag in ("nvlink", "xgmi") and pci is not None:
            target = _address(attributes.get("target", ""))
            count = whole_number(attributes.get("count")) or 0
            pci.links.append((tag, target, count, attributes.get("tclass", "").lower()))
        elif tag == "net":
            if pci is not None:
                pci.nets.append(attributes)
            else:
                self.host.loose_nets.append((self.numa, attributes))
        self.stack.append((tag, here))

    def _pci(self, attributes: Mapping[str, str], parent: Pci | None) -> Pci | None:
        assert self.host is not None
        line = self.line
        address = _address(attributes.get("busid", "")) or f"?{line}.{len(self.host.devices)}"
        if len(self.host.devices) >= 4 * MAX_DEVICES:
            raise too_many(self.name, line, len(self.host.devices) + 1)
        path = (*parent.path, parent.address) if parent else ()
        if parent:
            parent.has_children = True
        found = Pci(
            address=address, attributes=attributes, path=path, numa=self.numa, cpus=self.cpus
        )
        return self.host.devices.setdefault(address, found)

    def end(self, tag: str) -> None:
        _, pci = self.stack.pop()
        if pci is not None:
            pci.closed = True
        if tag == "cpu":
            self.numa = self.cpus = None


def cpu_list(mask: str) -> str | None:
    """Turn a CPU mask of 32-bit words into the kernel's list.

    >>> cpu_list("000000ff,f000000f")
    '0-3,28-39'
    """
    if not _MASK.fullmatch(mask):
        return None
    value = 0
    for word in mask.split(","):
        value = value << 32 | int(word, 16)
    parts, cpu = [], 0
    while value:
        skipped = (value & -value).bit_length() - 1
        value >>= skipped
        cpu += skipped
        run = (value + 1 & ~value).bit_length() - 1
        value >>= run
        parts.append(str(cpu) if run == 1 else f"{cpu}-{cpu + run - 1}")
        cpu += run
    return ",".join(parts) or None


def whole_number(digits: str | None) -> int | None:
    """The number that an attribute holds; None where there is none."""
    return int(digits) if digits and digits.isdecimal() and len(digits) < 7 else None


def _address(text: str) -> str:
    return pci_address(text) or text.lower()  # a switch may be `fffffff:ffff:ff`
