"""What is wrong with the links inside one node: dead, missing or lopsided NVLink, far NICs.

Which links a device *should* have comes from the table of products where the product is known, and
from its neighbours where it is not: of eight devices behind one switch, the one without NVLink is
broken; of three cards in a workstation, two of them bridged, the third is merely alone.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from parctl.topology.cliques import connected_groups
from parctl.topology.describe import UNKNOWN, gpus_text, group_text
from parctl.topology.links import link_count
from parctl.topology.model import Hardware
from parctl.topology.products import Product, find_product

# GPUDirect RDMA stays off the CPU only below a common PCIe bridge
NEARNESS = {"PIX": 0, "PXB": 1, "PHB": 2, "NODE": 3, "SYS": 4}
FARTHEST_NEAR = NEARNESS["PHB"]
# Grace CPUs drive their GPUs and NICs from separate host bridges: nearer than NODE cannot be had
ON_GRACE = frozenset({"gb200", "gb300"})
BUILT_IN = ("switch", "direct", "hybrid")  # meshes that come with the board, unlike bridges


class Observation(NamedTuple):
    """One thing seen in one kind of node."""

    kind: str
    fault: bool
    gpus: tuple[int, ...]  # device indexes
    message: str


def nvlink_findings(hardware: Hardware) -> Iterator[Observation]:
    """Ends that disagree, devices that lost NVLink, devices with fewer links than they should."""
    yield from _one_way(hardware)
    counts = [[link_count(code) for code in row] for row in hardware.matrix]
    known = [i for i, row in enumerate(hardware.matrix) if UNKNOWN not in row]
    known = [i for i in known if not hardware.devices[i].mig]
    linked = [i for i in known if any(counts[i])]
    yield from _dead(hardware, known, linked)
    products = {i: _product(hardware, i) for i in linked}
    by_table = [i for i in linked if (p := products[i]) is not None and p.mesh in BUILT_IN]
    yield from _fewer_than_the_table(hardware, by_table, counts)
    rest = [i for i in linked if products[i] is None]
    yield from _fewer_than_the_others(hardware, rest, counts)


def nic_findings(hardware: Hardware) -> Iterator[Observation]:
    """Devices whose nearest NIC is behind the CPU, by how far it is."""
    far: dict[str, list[int]] = {}
    for device, row in zip(hardware.devices, hardware.nic_matrix, strict=False):
        near = [code for code in row if code in NEARNESS]
        if not near or UNKNOWN in row:
            continue
        best = min(near, key=NEARNESS.__getitem__)
        farthest = FARTHEST_NEAR + (device.product in ON_GRACE)
        if NEARNESS[best] > farthest:
            far.setdefault(best, []).append(device.index)
    for code, indexes in far.items():
        meaning = "on another NUMA node" if code == "SYS" else "behind another host bridge"
        yield Observation(
            "far-nic",
            False,
            tuple(indexes),
            f"{gpus_text(indexes)}: no near NIC; the nearest is {meaning} ({code})",
        )


def _one_way(hardware: Hardware) -> Iterator[Observation]:
    size = len(hardware.devices)
    for i in range(size):
        for j in range(i + 1, size):
            there, back = hardware.matrix[i][j], hardware.matrix[j][i]
            if UNKNOWN not in (there, back) and there != back:
                a, b = hardware.devices[i].index, hardware.devices[j].index
                yield Observation(
                    "asymmetric-link",
                    True,
                    (a, b),
                    f"gpu {a} reaches gpu {b} over {there}, but gpu {b} reaches gpu {a} over "
                    f"{back}",
                )


def _dead(hardware: Hardware, known: Sequence[int], linked: Sequence[int]) -> Iterator[Observation]:
    alone = [i for i in known if i not in linked]
    if not alone or len(hardware.devices) < 2:
        return
    groups = [group for group in connected_groups(hardware.matrix) if len(group) > 1]
    largest = max(groups, key=len, default=())
    for i in alone:
        product = _product(hardware, i)
        index = hardware.devices[i].index
        built_in = product is not None and product.mesh in BUILT_IN
        if not largest and not built_in:
            continue
        others = (
            f"while {group_text(hardware.devices[j].index for j in largest)} are joined"
            if largest
            else f"though {product.key if product else ''} comes with it"
        )
        # a lone device beside one bridged pair is how such a machine is built
        if built_in or (product is None and len(largest) > 2):
            yield Observation("dead-nvlink", True, (index,), f"gpu {index}: no NVLink, {others}")
        else:
            yield Observation(
                "no-bridge", False, (index,), f"gpu {index}: not bridged by NVLink, {others}"
            )


def _fewer_than_the_table(
    hardware: Hardware, linked: Sequence[int], counts: Sequence[Sequence[int]]
) -> Iterator[Observation]:
    short: dict[int, int] = {}
    for i in linked:
        product = _product(hardware, i)
        assert product is not None and product.links is not None
        # behind a switch every pair shows all links of the lesser one; direct links add up
        up = max(counts[i]) if product.mesh == "switch" else sum(counts[i])
        if product.mesh == "switch" and sum(counts[i]) == product.links:
            up = product.links
        if up < product.links:
            short[i] = up
    # all alike: perhaps we see a part of the machine only
    fault = len(set(short.values())) > 1 or len(short) < len(linked)
    for up in sorted(set(short.values())):
        indexes = tuple(hardware.devices[i].index for i in short if short[i] == up)
        product = _product(hardware, next(i for i in short if short[i] == up))
        total = product.links if product else 0
        yield Observation(
            "fewer-links", fault, indexes, f"{gpus_text(indexes)}: {up} of {total} NVLinks are up"
        )


def _fewer_than_the_others(
    hardware: Hardware, linked: Sequence[int], counts: Sequence[Sequence[int]]
) -> Iterator[Observation]:
    """Compare devices of one connected set; a cube mesh gives its pairs unequal shares of links."""
    for group in connected_groups(hardware.matrix):
        members = [i for i in group if i in linked]
        totals = {i: sum(counts[i]) for i in members}
        if len(members) < 3 or len(set(totals.values())) == 1:
            continue
        most = {i: max(counts[i]) for i in members}
        usual = max(most.values())
        short = tuple(hardware.devices[i].index for i in members if most[i] < usual)
        if short:
            best = min(most[i] for i in members if most[i] < usual)
            yield Observation(
                "fewer-links",
                True,
                short,
                f"{gpus_text(short)}: NV{best} at best, the others have NV{usual}",
            )
        else:
            yield Observation(
                "uneven-links",
                False,
                tuple(hardware.devices[i].index for i in members),
                "the devices do not all have the same number of NVLinks: "
                + ", ".join(f"gpu {hardware.devices[i].index} {n}" for i, n in totals.items()),
            )


def _product(hardware: Hardware, position: int) -> Product | None:
    name = hardware.devices[position].product
    return find_product(name) if name else None
