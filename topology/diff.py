"""What differs between two topologies: yesterday and today, the plan and what really came up.

Nodes are paired by name; what is left on both sides is paired by the GPUs' UUIDs, and a last single
node by being last. Devices are paired by UUID where both sides have them, else by index. Where a
fact came from is not compared: the same fact from a better source is the same cluster.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from parctl.topology.describe import UNKNOWN, devices_text, gpus_text, name_range
from parctl.topology.model import Device, Hardware, Nic, Node, Topology

DEVICE_FACTS = (
    "index",
    "product",
    "uuid",
    "memory_bytes",
    "numa",
    "pci",
    "cpu_affinity",
    "mig",
    "ecc_errors",
    "remapped_rows",
    "power_limit_w",
    "faults",
)
NIC_FACTS = ("speed_gbit_s", "numa", "pci", "rail")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    nodes: tuple[str, ...]  # names in the second topology; empty: the cluster as a whole
    fact: str  # `gpu 2 pci`, `node`, `tiers`, ...
    before: str | None  # None: was not there
    after: str | None  # None: is gone

    def __str__(self) -> str:
        where = f"{name_range(self.nodes)}: " if self.nodes else ""
        if self.before is None:
            return f"{where}{self.fact} added: {self.after}"
        if self.after is None:
            return f"{where}{self.fact} removed: {self.before}"
        return f"{where}{self.fact}: {self.before} -> {self.after}"


def diff_topologies(before: Topology, after: Topology) -> tuple[Change, ...]:
    """List the changes; none when the clusters are equal in every known fact."""
    changes: list[Change] = []
    if before.tiers != after.tiers:
        changes.append(
            Change(
                nodes=(), fact="fabric tiers", before=_list(before.tiers), after=_list(after.tiers)
            )
        )
    pairs, gone, new = _pairs(before.nodes, after.nodes)
    for nodes, fact in ((gone, "removed"), (new, "added")):
        changes += _whole_nodes(nodes, fact)
    # a thousand nodes that changed alike are one change
    inside: dict[tuple[int, int], tuple[tuple[str, str | None, str | None], ...]] = {}
    alike: dict[tuple[str, str | None, str | None], list[str]] = {}
    for a, b in pairs:
        key = (id(a.hardware), id(b.hardware))
        if key not in inside:
            inside[key] = tuple(_inside(a.hardware, b.hardware))
        for change in (*_outside(a, b, before.tiers == after.tiers), *inside[key]):
            alike.setdefault(change, []).append(b.name)
    changes += [
        Change(nodes=tuple(names), fact=fact, before=old, after=now)
        for (fact, old, now), names in alike.items()
    ]
    return tuple(changes)


def change_to_json(change: Change) -> dict[str, Any]:
    """The change as plain values."""
    return {
        "nodes": list(change.nodes),
        "fact": change.fact,
        "before": change.before,
        "after": change.after,
    }


def _pairs(
    before: Sequence[Node], after: Sequence[Node]
) -> tuple[list[tuple[Node, Node]], list[Node], list[Node]]:
    by_name = {node.name: node for node in after}
    pairs = [(node, by_name[node.name]) for node in before if node.name in by_name]
    paired = {node.name for node, _ in pairs}
    gone = [node for node in before if node.name not in paired]
    new = [node for node in after if node.name not in paired]
    by_uuids = {uuids: node for node in new if (uuids := _uuids(node))}
    renamed = [(node, by_uuids[u]) for node in gone if (u := _uuids(node)) in by_uuids]
    if not renamed and len(gone) == len(new) == 1:
        renamed = [(gone[0], new[0])]
    old_names, new_names = {a.name for a, _ in renamed}, {b.name for _, b in renamed}
    return (
        pairs + renamed,
        [node for node in gone if node.name not in old_names],
        [node for node in new if node.name not in new_names],
    )


def _uuids(node: Node) -> frozenset[str]:
    uuids = [device.uuid for device in node.hardware.devices if device.uuid]
    return frozenset(uuids) if len(uuids) == len(node.hardware.devices) else frozenset()


def _whole_nodes(nodes: Sequence[Node], what: str) -> Iterator[Change]:
    alike: dict[str, list[str]] = {}
    for node in nodes:
        alike.setdefault(devices_text(node.hardware.devices), []).append(node.name)
    for text, names in alike.items():
        gone = what == "removed"
        yield Change(
            nodes=tuple(names),
            fact="node" if len(names) == 1 else "nodes",
            before=text if gone else None,
            after=None if gone else text,
        )


def _outside(a: Node, b: Node, same_tiers: bool) -> Iterator[tuple[str, str | None, str | None]]:
    if a.name != b.name:
        yield "name", a.name, b.name
    if a.domain != b.domain:
        yield "NVLink domain", a.domain or "none", b.domain or "none"
    if same_tiers and a.tiers != b.tiers:
        yield "place in the fabric", _list(a.tiers), _list(b.tiers)


def _inside(a: Hardware, b: Hardware) -> Iterator[tuple[str, str | None, str | None]]:
    if a is b:
        return
    for fact in ("kind", "num_cpus", "memory_bytes"):
        if (old := getattr(a, fact)) != (now := getattr(b, fact)):
            yield fact, _text(old), _text(now)
    same, gone, new = _device_pairs(a.devices, b.devices)
    for device in gone:
        yield f"gpu {device.index}", _device_text(device), None
    for device in new:
        yield f"gpu {device.index}", None, _device_text(device)
    for i, j in same:
        for fact in DEVICE_FACTS:
            old, now = getattr(a.devices[i], fact), getattr(b.devices[j], fact)
            if old != now:
                yield f"gpu {b.devices[j].index} {fact}", _text(old), _text(now)
    yield from _links(a, b, same)
    yield from _nics(a, b, same)


def _device_pairs(
    a: Sequence[Device], b: Sequence[Device]
) -> tuple[list[tuple[int, int]], list[Device], list[Device]]:
    keys = "uuid" if all(device.uuid for device in (*a, *b)) else "index"
    place = {getattr(device, keys): j for j, device in enumerate(b)}
    same = [(i, place[key]) for i, d in enumerate(a) if (key := getattr(d, keys)) in place]
    here, there = {i for i, _ in same}, {j for _, j in same}
    return (
        same,
        [device for i, device in enumerate(a) if i not in here],
        [device for j, device in enumerate(b) if j not in there],
    )


def _links(
    a: Hardware, b: Hardware, same: Sequence[tuple[int, int]]
) -> Iterator[tuple[str, str | None, str | None]]:
    """Changed links, gathered by device: one GPU that lost NVLink is one line, not seven."""
    changed: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for position, (i, j) in enumerate(same):
        for k, m in same[position + 1 :]:
            old, now = a.matrix[i][k], b.matrix[j][m]
            if old != now:
                pair = (b.devices[j].index, b.devices[m].index)
                changed.setdefault((old, now), []).append(pair)
    for (old, now), pairs in changed.items():
        ends: dict[int, set[int]] = {}
        for one, other in pairs:
            ends.setdefault(one, set()).add(other)
            ends.setdefault(other, set()).add(one)
        while ends:
            hub = min(ends, key=lambda end: (-len(ends[end]), end))
            spokes = sorted(ends.pop(hub))
            yield f"link of gpu {hub} to {gpus_text(spokes)}", old, now
            for spoke in spokes:
                ends[spoke].remove(hub)
                if not ends[spoke]:
                    del ends[spoke]


def _nics(
    a: Hardware, b: Hardware, same: Sequence[tuple[int, int]]
) -> Iterator[tuple[str, str | None, str | None]]:
    place = {nic.name: k for k, nic in enumerate(b.nics)}
    known = {nic.name for nic in a.nics}
    for k, nic in enumerate(a.nics):
        if nic.name not in place:
            yield f"nic {nic.name}", _nic_text(nic), None
            continue
        m = place[nic.name]
        for fact in NIC_FACTS:
            old, now = getattr(nic, fact), getattr(b.nics[m], fact)
            if old != now:
                yield f"nic {nic.name} {fact}", _text(old), _text(now)
        if not (a.nic_matrix and b.nic_matrix):
            continue
        moved: dict[tuple[str, str], list[int]] = {}
        for i, j in same:
            old_code, new_code = a.nic_matrix[i][k], b.nic_matrix[j][m]
            if old_code != new_code:
                moved.setdefault((old_code, new_code), []).append(b.devices[j].index)
        for (old_code, new_code), indexes in moved.items():
            yield f"nic {nic.name} to {gpus_text(indexes)}", old_code, new_code
    for nic in b.nics:
        if nic.name not in known:
            yield f"nic {nic.name}", None, _nic_text(nic)


def _device_text(device: Device) -> str:
    return device.product or device.uuid or UNKNOWN


def _nic_text(nic: Nic) -> str:
    return UNKNOWN if nic.speed_gbit_s is None else f"{nic.speed_gbit_s:g} Gbit/s"


def _list(values: Sequence[str]) -> str:
    return ", ".join(values) or "none"


def _text(value: Any) -> str:
    if value is None:
        return "unknown"
    return _list(value) if isinstance(value, tuple) else str(value)
