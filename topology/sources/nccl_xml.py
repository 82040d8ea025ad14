"""NCCL and RCCL topology files: the PCIe tree of a machine, and the NVLinks of its GPUs.

`NCCL_TOPO_DUMP_FILE=FILE` writes one; clouds ship static ones for NCCL_TOPO_FILE::

    <system><cpu numaid="0" affinity="ffff">
      <pci busid="ffff:ff:01.0" class="0x060400">                 a PCIe switch
        <pci busid="0000:10:1c.0" class="0x030200">               a GPU
          <gpu dev="0" rank="0"><nvlink target="..." count="12" tclass="0x068000"/></gpu></pci>
        <pci busid="0000:10:1b.0" class="0x020700">               a NIC
          <nic><net name="mlx5_0" speed="200000"/></nic></pci></pci></cpu></system>

The tree gives the PCIe distance of every two devices. NVLinks that end at a switch (class 0x0680)
join a GPU with every other behind switches, by as many links as the lesser has. A static file has
no `<gpu>` elements: NCCL itself asks the driver for NVLinks, so links between GPUs stay unknown.
`parctl.topology.sources.nccl_tree` reads the elements.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

from parctl.errors import UsageError
from parctl.topology.model import Device, Hardware, Nic, Node, Topology
from parctl.topology.sources.capture import (
    MAX_DEVICES,
    UNKNOWN,
    Matrix,
    device_list,
    differing_ends,
    mirror,
    missing_facts,
    node_name_of,
    too_many,
    unknown_matrix,
)
from parctl.topology.sources.nccl_tree import BRIDGE_CLASSES, Host, Pci, TreeParser, whole_number

SOURCE = "nccl-xml"
NVSWITCH_CLASS = "0x0680"
# vendor:device of SXM and PCIe boards, as the PCI ID registry lists them
BOARDS = {
    "0x10de:0x1db1": "v100", "0x10de:0x1db5": "v100-32g", "0x10de:0x1db4": "v100-pcie",
    "0x10de:0x1db6": "v100-pcie", "0x10de:0x1eb8": "t4", "0x10de:0x20b0": "a100-40g",
    "0x10de:0x20b2": "a100-80g", "0x10de:0x20f1": "a100-pcie-40g",
    "0x10de:0x20b5": "a100-pcie-80g", "0x10de:0x20f3": "a800", "0x10de:0x2237": "a10g",
    "0x10de:0x27b8": "l4", "0x10de:0x26b9": "l40s", "0x10de:0x2330": "h100",
    "0x10de:0x2331": "h100-pcie", "0x10de:0x2324": "h800", "0x10de:0x2329": "h20",
    "0x10de:0x2335": "h200", "0x10de:0x2901": "b200", "0x10de:0x2941": "gb200",
    "0x10de:0x3182": "b300", "0x10de:0x31c2": "gb300", "0x1002:0x74a1": "mi300x",
}  # fmt: skip

_ROOT = re.compile(r"<system\b[^<>]{0,200}>\s{0,200}(?:<!--|<cpu\b)")


def looks_like(text: str) -> bool:
    """Whether a `<system>` with a `<cpu>` stands in this text."""
    return _ROOT.search(text) is not None


def read_text(text: str, name: str) -> Topology:
    """Read the machine, or the machines, of a topology file."""
    parser = TreeParser(name)
    parser.parse(text)
    hosts = [host for host in parser.hosts.values() if host.devices or host.loose_nets]
    if not hosts:
        where, why = parser.stopped or (1, "no `<cpu>` with a `<pci>` in it")
        raise UsageError(
            f"{name}:{where}: not a topology file: {why}",
            hint="NCCL_TOPO_DUMP_FILE=FILE makes NCCL write one",
        )
    nodes: list[Node] = []
    warnings: list[str] = []
    unknown: list[str] = []
    if parser.stopped is not None:
        line, why = parser.stopped
        unknown.append(f"what follows line {line}: the file is cut or damaged there ({why})")
    for position, host in enumerate(hosts):
        label = node_name_of(name) if len(hosts) == 1 else f"{node_name_of(name)}-{position}"
        of = "" if len(hosts) == 1 else f"{label}: "
        hardware = _hardware(host, of, warnings, unknown)
        nodes.append(
            Node(name=label, hardware=hardware, domain=None, tiers=(), sources={"hardware": SOURCE})
        )
    if len(hosts) > 1:
        unknown.append("NVLink domains: the file does not name them")
    return Topology(
        name=name,
        source=f"{SOURCE} {name}",
        tiers=(),
        nodes=tuple(nodes),
        warnings=tuple(warnings),
        unknown=tuple(unknown),
    )


def _hardware(host: Host, of: str, warnings: list[str], unknown: list[str]) -> Hardware:
    gpus = sorted((pci for pci in host.devices.values() if pci.is_gpu), key=_order)
    if len(gpus) > MAX_DEVICES:
        raise too_many(host.name, 1, len(gpus))
    nics = [pci for pci in host.devices.values() if pci.is_nic and not pci.is_gpu]
    ports = [(pci, net) for pci in nics for net in (pci.nets or [{}])][:MAX_DEVICES]
    ports.sort(key=lambda port: (_number(port[1].get("dev")), port[0].address))
    matrix = unknown_matrix(len(gpus))
    has_links = any(pci.gpu is not None for pci in gpus)
    for i, a in enumerate(gpus):
        for j, b in enumerate(gpus):
            if i != j and has_links:
                matrix[i][j] = _code(a, b)
    for i, gpu in enumerate(gpus):
        if _ends_at_itself(gpu):
            warnings.append(f"{of}gpu {i}: its links end at its own address, which tells no peer")
    labels = [f"{of}gpu {i}" for i in range(len(gpus))]
    warnings += differing_ends(labels, matrix, mirror(matrix))
    hardware = Hardware(
        kind="gpu",
        devices=tuple(_device(i, pci) for i, pci in enumerate(gpus)),
        matrix=tuple(map(tuple, matrix)),
        nics=tuple(
            [_nic(position, pci, net) for position, (pci, net) in enumerate(ports)]
            + [_loose(numa, net) for numa, net in host.loose_nets]
        ),
        nic_matrix=_nic_matrix(gpus, [pci for pci, _ in ports], len(host.loose_nets)),
        num_cpus=None,
        memory_bytes=None,
        sources={"matrix": SOURCE, "nics": SOURCE, "nic_matrix": SOURCE},
    )
    unknown += _unknown(host, hardware, gpus, of, has_links=has_links)
    return hardware


def _unknown(
    host: Host, hardware: Hardware, gpus: Sequence[Pci], of: str, *, has_links: bool
) -> Iterator[str]:
    strange = [
        pci.address
        for pci in host.devices.values()
        if not (pci.is_gpu or pci.is_nic or pci.has_children or pci.is_a(BRIDGE_CLASSES))
    ]
    if strange:
        shown = ", ".join(strange[:3]) + (", ..." if len(strange) > 3 else "")
        yield (
            f"{of}kind of {len(strange)} PCI devices ({shown}): the file gives no class that "
            "says GPU or NIC"
        )
    if gpus and not has_links:
        yield f"{of}links over NVLink: a static file leaves them to the driver"
    if gpus and any("dev" not in (pci.gpu or {}) for pci in gpus):
        yield (
            f"{of}numbers of {device_list(range(len(gpus)))}: not in the file, "
            "counted by PCI address as the driver does"
        )
    yield from missing_facts(hardware, of=of)


def _order(pci: Pci) -> tuple[int, str]:
    return _number((pci.gpu or {}).get("dev")), pci.address


def _number(digits: str | None) -> int:
    number = whole_number(digits)
    return 10**6 if number is None else number  # those without come last


def _device(index: int, pci: Pci) -> Device:
    board = f"{pci.attributes.get('vendor', '')}:{pci.attributes.get('device', '')}".lower()
    product = BOARDS.get(board)
    sources = _told(product=product, numa=pci.numa, pci=pci.known_address, cpu_affinity=pci.cpus)
    if product is not None:
        sources["product"] = f"{SOURCE}, PCI id"
    return Device(
        index=index,
        product=product,
        uuid=None,
        memory_bytes=None,
        numa=pci.numa,
        pci=pci.known_address,
        cpu_affinity=pci.cpus,
        sources=sources,
    )


def _nic(position: int, pci: Pci, net: Mapping[str, str]) -> Nic:
    return Nic(
        name=net.get("name") or f"NIC{position}",
        speed_gbit_s=_gbit_s(net),
        numa=pci.numa,
        pci=pci.known_address,
        rail=None,
        sources=_told(pci=pci.known_address, numa=pci.numa, speed_gbit_s=_gbit_s(net)),
    )


def _loose(numa: int | None, net: Mapping[str, str]) -> Nic:
    return Nic(
        name=net.get("name") or "net",
        speed_gbit_s=_gbit_s(net),
        numa=numa,
        pci=None,
        rail=None,
        sources=_told(numa=numa, speed_gbit_s=_gbit_s(net)),
    )


def _told(**facts: object) -> dict[str, str]:
    return {key: SOURCE for key, value in facts.items() if value is not None}


def _nic_matrix(
    gpus: Sequence[Pci], nics: Sequence[Pci], num_loose: int
) -> tuple[tuple[str, ...], ...]:
    rows: Matrix = [[_pcie_code(gpu, nic) for nic in nics] + [UNKNOWN] * num_loose for gpu in gpus]
    return tuple(map(tuple, rows)) if nics or num_loose else ()


def _code(a: Pci, b: Pci) -> str:
    """How a sees its way to b. Of a GPU that was cut off, missing links prove nothing."""
    if not a.closed:
        return UNKNOWN
    direct = sum(count for tag, target, count, _ in a.links if target == b.address)
    if direct:
        tag = next(tag for tag, target, _, _ in a.links if target == b.address)
        return "XGMI" if tag == "xgmi" else f"NV{direct}"
    if not b.closed or _ends_at_itself(a) or _ends_at_itself(b):
        return UNKNOWN
    switched = min(_to_switches(a), _to_switches(b))
    return f"NV{switched}" if switched else _pcie_code(a, b)


def _ends_at_itself(pci: Pci) -> bool:
    """Whether a link claims its own GPU as its far end, as files of some virtual machines do."""
    return any(target == pci.address for _, target, _, _ in pci.links)


def _to_switches(pci: Pci) -> int:
    return sum(
        count
        for tag, _, count, target_class in pci.links
        if tag == "nvlink" and target_class.startswith(NVSWITCH_CLASS)
    )


def _pcie_code(a: Pci, b: Pci) -> str:
    """The PCIe path between two devices, by the lowest bridge above both."""
    if a.path and b.path and a.path[0] == b.path[0]:
        direct = a.path == b.path
        return "PIX" if direct else "PXB"
    if a.numa is None or b.numa is None:
        return UNKNOWN
    return "PHB" if a.numa == b.numa else "SYS"


def _gbit_s(net: Mapping[str, str]) -> float | None:
    speed = whole_number(net.get("speed"))
    return speed / 1000 if speed else None  # the file has Mbit/s
