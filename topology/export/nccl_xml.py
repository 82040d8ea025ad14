"""One node as NCCL's topology file (NCCL_TOPO_FILE): PCIe tree, NVLinks and NICs.

The tree has only what decides a distance: devices below one bridge are PIX, below two PXB, below
the CPU farther. NCCL fills in what is not written (CPU vendor, affinity, compute capability) from
the machine itself. Where PCI addresses are unknown they are made up in the PCI domain `ff00`, which
no machine has, and a comment says so: such a file is for simulators.
"""

import re
from collections.abc import Iterator, Sequence
from xml.sax.saxutils import quoteattr

from parctl.errors import UsageError
from parctl.topology.describe import UNKNOWN, name_range, nodes_alike
from parctl.topology.links import link_count
from parctl.topology.model import Hardware, Topology
from parctl.topology.products import find_product

# what NCCL itself writes as the end of a link behind a switch whose address is hidden
SWITCH = ("fffffff:ffff:ff", "0x068000")
GPU_CLASS, NIC_CLASS, BRIDGE_CLASS = "0x030200", "0x020000", "0x060400"
AMD_CLASS = "0x038000"
MADE_UP = "ff00"


def export(topology: Topology) -> str:
    """Write the file of the one kind of node that there is."""
    kinds = nodes_alike(topology.nodes)
    if len(kinds) > 1:
        raise UsageError(
            f"an NCCL topology file describes one node, but there are {len(kinds)} kinds: "
            + "; ".join(name_range([node.name for node in nodes]) for _, nodes in kinds[:4]),
            hint="choose one with `--node NAME`",
        )
    hardware, nodes = kinds[0]
    if hardware.kind == "cpu" or not hardware.devices:
        raise UsageError(f"{nodes[0].name}: no GPU is known, so there is nothing to tell NCCL")
    return "\n".join(_lines(hardware)) + "\n"


def _lines(hardware: Hardware) -> Iterator[str]:
    addresses = _addresses(hardware)
    if any(address.startswith(MADE_UP) for address in addresses):
        yield "<!-- PCI addresses in domain ff00 are made up: the real ones are unknown. -->"
    yield '<system version="1">'
    numa = [device.numa for device in hardware.devices] + [nic.numa for nic in hardware.nics]
    bridges = 0
    outer = _sets(hardware, ("PIX", "PXB"))
    inner = _sets(hardware, ("PIX",))
    for place in sorted(set(numa), key=lambda n: (n is None, n or 0)):
        yield f'  <cpu numaid="{-1 if place is None else place}"{_affinity(hardware, place)}>'
        here = [i for i, n in enumerate(numa) if n == place]
        for members in _grouped(here, outer):
            if len(members) == 1:
                yield from _unit(hardware, addresses, members[0], "    ")
                continue
            bridges += 1
            yield f"    {_bridge(bridges)}"
            parts = list(_grouped(members, inner))
            for part in parts:
                if len(parts) == 1:
                    for i in part:
                        yield from _unit(hardware, addresses, i, "      ")
                    continue
                bridges += 1
                yield f"      {_bridge(bridges)}"
                for i in part:
                    yield from _unit(hardware, addresses, i, "        ")
                yield "      </pci>"
            yield "    </pci>"
        yield "  </cpu>"
    yield "</system>"


def _unit(hardware: Hardware, addresses: Sequence[str], i: int, indent: str) -> Iterator[str]:
    """One device or NIC; positions count the devices first, then the NICs."""
    if i < len(hardware.devices):
        kind = AMD_CLASS if "XGMI" in hardware.matrix[i] else GPU_CLASS
        yield f'{indent}<pci busid="{addresses[i]}" class="{kind}">'
        # without a <gpu>, NCCL asks the driver for NVLinks: right where they are unknown
        if not any(UNKNOWN in row for row in hardware.matrix):
            index = hardware.devices[i].index
            yield f'{indent}  <gpu dev="{index}" rank="{index}">'
            yield from (f"{indent}    {link}" for link in _links(hardware, addresses, i))
            yield f"{indent}  </gpu>"
    else:
        k = i - len(hardware.devices)
        nic = hardware.nics[k]
        speed = "" if nic.speed_gbit_s is None else f' speed="{round(nic.speed_gbit_s * 1000)}"'
        yield f'{indent}<pci busid="{addresses[i]}" class="{NIC_CLASS}">'
        yield f"{indent}  <nic>"
        yield f'{indent}    <net name={quoteattr(_clean(nic.name))} dev="{k}"{speed}/>'
        yield f"{indent}  </nic>"
    yield f"{indent}</pci>"


def _links(hardware: Hardware, addresses: Sequence[str], i: int) -> Iterator[str]:
    row = hardware.matrix[i]
    if any(code == "XGMI" for code in row):
        for j, code in enumerate(row):
            if code == "XGMI":
                yield f'<xgmi target="{addresses[j]}" count="1" tclass="{AMD_CLASS}"/>'
        return
    counts = {j: link_count(code) for j, code in enumerate(row) if link_count(code)}
    product = find_product(hardware.devices[i].product or "")
    most = product.links if product is not None and product.links else 18
    # every peer over all links, or more than a device has: they end at a switch
    if max(counts.values(), default=0) == most or sum(counts.values()) > most:
        target, target_class = SWITCH
        yield f'<nvlink target="{target}" count="{max(counts.values())}" tclass="{target_class}"/>'
        return
    for j, count in counts.items():
        yield f'<nvlink target="{addresses[j]}" count="{count}" tclass="{GPU_CLASS}"/>'


def _addresses(hardware: Hardware) -> list[str]:
    known = [device.pci for device in hardware.devices] + [nic.pci for nic in hardware.nics]
    return [
        address.lower()
        if address and re.fullmatch(r"[0-9A-Fa-f:.]{7,20}", address)
        else f"{MADE_UP}:{i & 255:02x}:{i >> 8:02x}.0"
        for i, address in enumerate(known)
    ]


def _sets(hardware: Hardware, codes: tuple[str, ...]) -> list[int]:
    """Number the sets of devices and NICs joined by these codes; a number per position."""
    num_devices = len(hardware.devices)
    leader = list(range(num_devices + len(hardware.nics)))

    def find(i: int) -> int:
        while leader[i] != i:
            i = leader[i]
        return i

    for i in range(num_devices):
        row = [*hardware.matrix[i], *(hardware.nic_matrix[i] if hardware.nic_matrix else ())]
        for j, code in enumerate(row):
            if code in codes:
                low, high = sorted((find(i), find(j)))
                leader[high] = low
    return [find(i) for i in range(len(leader))]


def _grouped(members: Sequence[int], sets: Sequence[int]) -> Iterator[list[int]]:
    groups: dict[int, list[int]] = {}
    for i in members:
        groups.setdefault(sets[i], []).append(i)
    yield from groups.values()


def _bridge(number: int) -> str:
    return f'<pci busid="ffff:{number & 255:02x}:{number >> 8:02x}.0" class="{BRIDGE_CLASS}">'


def _affinity(hardware: Hardware, numa: int | None) -> str:
    """The CPUs of a NUMA node as NCCL's mask of 32-bit words."""
    from parctl.topology.sources.local import parse_cpu_list

    lists = {device.cpu_affinity for device in hardware.devices if device.numa == numa}
    if len(lists) != 1 or not (text := lists.pop()) or not re.fullmatch(r"[0-9,-]{1,400}", text):
        return ""
    cpus = [cpu for cpu in parse_cpu_list(text) if cpu < 4096]
    words = [
        sum(1 << cpu % 32 for cpu in cpus if cpu // 32 == word)
        for word in range(max(cpus, default=0) // 32 + 1)
    ]
    return f' affinity="{",".join(f"{word:08x}" for word in reversed(words))}"'


def _clean(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
