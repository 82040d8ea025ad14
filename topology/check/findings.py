"""What is wrong or odd in a cluster: dead links, uneven splits, far NICs, sick memory.

A *fault* is something that should work and does not; it makes `parctl topology --check` exit 1. Any
other finding is worth knowing before a long run: the hardware may well be meant to be so. Nothing
is concluded from a fact that is unknown.

Equal nodes are looked at once, so a cluster of a thousand equal nodes costs as much as one node.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from parctl.topology.check.link_findings import Observation, nic_findings, nvlink_findings
from parctl.topology.describe import gpus_text, group_text, name_range
from parctl.topology.model import Device, Hardware, Node, Topology
from parctl.topology.precedence import is_witness


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    kind: str  # one word for programs, such as `dead-nvlink`
    fault: bool
    nodes: tuple[str, ...]  # empty: the cluster as a whole
    gpus: tuple[int, ...]  # device indexes in each of the nodes; empty: no device in particular
    message: str

    def __str__(self) -> str:
        return f"{name_range(self.nodes)}: {self.message}" if self.nodes else self.message


def find_problems(topology: Topology) -> tuple[Finding, ...]:
    """Look at every kind of node, then at the cluster as a whole; faults come first."""
    by_hardware: dict[int, list[Node]] = {}
    for node in topology.nodes:
        by_hardware.setdefault(id(node.hardware), []).append(node)
    where: dict[Observation, list[str]] = {}
    for nodes in by_hardware.values():
        for seen in _inside(nodes[0].hardware):
            where.setdefault(seen, []).extend(node.name for node in nodes)
    found = [
        Finding(
            kind=seen.kind,
            fault=seen.fault,
            nodes=tuple(names),
            gpus=seen.gpus,
            message=seen.message,
        )
        for seen, names in where.items()
    ]
    found += _across(topology)
    return tuple(sorted(found, key=lambda finding: not finding.fault))


def with_findings(topology: Topology) -> Topology:
    """The topology with what is wrong or odd among its warnings, each once."""
    said = [*topology.warnings, *map(str, find_problems(topology))]
    return replace(topology, warnings=tuple(dict.fromkeys(said)))


def _inside(hardware: Hardware) -> Iterator[Observation]:
    for device in hardware.devices:
        for fault in device.faults:
            yield Observation("device", True, (device.index,), f"gpu {device.index}: {fault}")
    if hardware.kind == "cpu":
        return
    yield from nvlink_findings(hardware)
    yield from _memory(hardware.devices)
    yield from _mig(hardware.devices)
    yield from _products(hardware.devices)
    yield from _numa(hardware.devices)
    yield from _affinity(hardware)
    yield from nic_findings(hardware)
    yield from _power(hardware.devices)


def _memory(devices: Sequence[Device]) -> Iterator[Observation]:
    for device in devices:
        if errors := device.ecc_errors:
            text = f"{errors:,} uncorrected ECC error{'s' * (errors != 1)}"
            yield Observation("ecc", True, (device.index,), f"gpu {device.index}: {text}")
        if rows := device.remapped_rows:
            text = f"{rows:,} memory row{'s' * (rows != 1)} remapped"
            yield Observation(
                "remapped-rows", False, (device.index,), f"gpu {device.index}: {text}"
            )


def _mig(devices: Sequence[Device]) -> Iterator[Observation]:
    cut = tuple(device.index for device in devices if device.mig)
    if cut:
        yield Observation(
            "mig", False, cut, f"{gpus_text(cut)}: MIG is on, and slices cannot use NVLink"
        )


def _products(devices: Sequence[Device]) -> Iterator[Observation]:
    products = Counter(device.product for device in devices if device.product)
    if len(products) > 1:
        parts = " and ".join(f"{count} x {name}" for name, count in products.items())
        yield Observation(
            "mixed-products", False, (), f"{parts} in one node; a group is as fast as its slowest"
        )


def _numa(devices: Sequence[Device]) -> Iterator[Observation]:
    counts = Counter(device.numa for device in devices)
    if None not in counts and len(set(counts.values())) > 1:
        split = " and ".join(
            f"{group_text(d.index for d in devices if d.numa == numa)} on NUMA node {numa}"
            for numa in sorted(numa for numa in counts if numa is not None)
        )
        yield Observation("uneven-numa", False, (), f"uneven NUMA split: {split}")


def _affinity(hardware: Hardware) -> Iterator[Observation]:
    """Affinities that a container or cgroup has made meaningless.

    It shows where some devices have none, and where devices on different NUMA nodes have the same.
    """
    devices = hardware.devices
    # no NUMA node either, or one from a table: nobody told us, which is not the same as hidden
    silent = tuple(
        device.index
        for device in devices
        if not device.cpu_affinity
        and device.numa is not None
        and is_witness(device.sources.get("numa"))
    )
    if silent and any(device.cpu_affinity for device in devices):
        yield Observation(
            "blinded-affinity",
            False,
            silent,
            f"{gpus_text(silent)}: no CPU affinity, though the others have one; a cgroup hides "
            "their CPUs",
        )
    size = range(len(devices))
    blind = {i for i in size for j in size if _apart(hardware, i, j) and _same_place(devices, i, j)}
    if blind:
        indexes = tuple(devices[i].index for i in sorted(blind))
        yield Observation(
            "blinded-affinity",
            False,
            indexes,
            f"{gpus_text(indexes)}: the same CPU or NUMA affinity, though links between them cross "
            "NUMA nodes; a container or virtual machine hides where they are",
        )


def _apart(hardware: Hardware, i: int, j: int) -> bool:
    """Whether links say that two devices sit on different NUMA nodes."""
    if hardware.matrix[i][j] == "SYS":
        return True
    rows = hardware.nic_matrix
    return len(rows) == len(hardware.devices) and any(
        "SYS" in pair and pair != ("SYS", "SYS") and "?" not in pair
        for pair in zip(rows[i], rows[j], strict=True)
    )


def _same_place(devices: Sequence[Device], i: int, j: int) -> bool:
    a, b = devices[i], devices[j]
    if a.cpu_affinity and b.cpu_affinity:
        return a.cpu_affinity == b.cpu_affinity
    return a.numa is not None and a.numa == b.numa


def _power(devices: Sequence[Device]) -> Iterator[Observation]:
    limits: dict[str | None, dict[int, float]] = {}
    for device in devices:
        if device.power_limit_w is not None:
            limits.setdefault(device.product, {})[device.index] = device.power_limit_w
    for watts in limits.values():
        usual = max(watts.values())
        low = tuple(index for index, limit in watts.items() if limit < usual)
        if low:
            least = min(watts.values())
            yield Observation(
                "power-limit",
                False,
                low,
                f"{gpus_text(low)}: power limit down to {least:g} W, the others have {usual:g} W",
            )


def _across(topology: Topology) -> Iterator[Finding]:
    of_product: dict[str, dict[str, int]] = {}
    for node in topology.nodes:
        devices = node.hardware.devices
        names = {device.product for device in devices}
        if node.hardware.kind == "gpu" and len(names) == 1 and (name := names.pop()):
            of_product.setdefault(name, {})[node.name] = len(devices)
    if len(of_product) > 1:
        parts = ", ".join(f"{name} on {name_range(list(on))}" for name, on in of_product.items())
        yield _of_cluster(
            "mixed-products", f"{len(of_product)} products in one cluster: {parts}", ()
        )
    for name, sizes in of_product.items():
        for usual, fewer, counts in _fewer(sizes):
            text = f"{counts} GPUs, where most {name} nodes have {usual}"
            yield _of_cluster("uneven-nodes", text, fewer)
    domains: dict[str, int] = {}
    num_nodes: Counter[str] = Counter()
    for node in topology.nodes:
        if node.domain is not None:
            domains[node.domain] = domains.get(node.domain, 0) + len(node.hardware.devices)
            num_nodes[node.domain] += 1
    if max(num_nodes.values(), default=0) > 1:
        for usual, fewer, counts in _fewer(domains):
            text = f"NVLink domain {name_range(fewer)}: {counts} GPUs, where most have {usual}"
            yield _of_cluster("uneven-domains", text, ())


def _fewer(sizes: Mapping[str, int]) -> Iterator[tuple[int, tuple[str, ...], str]]:
    """Yield (usual size, names of the smaller ones, their sizes) when most have one size."""
    usual, times = Counter(sizes.values()).most_common(1)[0]
    fewer = tuple(name for name, size in sizes.items() if size < usual)
    if fewer and 2 * times > len(sizes):
        yield usual, fewer, " or ".join(str(n) for n in sorted({sizes[name] for name in fewer}))


def _of_cluster(kind: str, message: str, nodes: tuple[str, ...]) -> Finding:
    return Finding(kind=kind, fault=False, nodes=nodes, gpus=(), message=message)
