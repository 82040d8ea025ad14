"""Merge descriptions of the inside of one node: devices, their links, NICs.

Facts go one by one to the best source. A link matrix goes cell by cell, since a capture may hold
half of it; the positions of the better source's devices are kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from parctl.topology.links import PCIE_CODES
from parctl.topology.model import Device, Hardware, Nic
from parctl.topology.precedence import fact_rank, is_witness

DEVICE_FACTS = (
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
)
NIC_FACTS = ("speed_gbit_s", "numa", "pci", "rail")
NODE_FACTS = ("num_cpus", "memory_bytes")
NIC_SOURCES = ("nics", "nic_matrix")
# a label counts MiB, a driver bytes: closer than this is the same memory
SAME_MEMORY = 0.02

Matrix = tuple[tuple[str, ...], ...]
Part = TypeVar("Part", Device, Nic, Hardware)


def merge_hardware(parts: Sequence[Hardware]) -> tuple[Hardware, tuple[str, ...]]:
    """Merge in order of trust; return the result and the sentences about what differs."""
    ordered = sorted(
        (part for part in parts if part.devices or part.nics or part.num_cpus),
        key=_trust,
    )
    if not ordered:
        return parts[0], ()
    result, notes = ordered[0], []
    for other in ordered[1:]:
        result, sentences = _merge_two(result, other)
        notes += sentences
    return result, tuple(dict.fromkeys(notes))


def _trust(hardware: Hardware) -> int:
    """Rank of who lists the devices; without a device anybody does better."""
    if not hardware.devices:
        return 10_000
    device = hardware.devices[0]
    named = device.sources.get("uuid") or device.sources.get("pci") or device.sources.get("index")
    fallback = hardware.sources.get("matrix") or next(iter(device.sources.values()), None)
    return fact_rank("devices", named or fallback)


def _merge_two(one: Hardware, two: Hardware) -> tuple[Hardware, list[str]]:
    notes: list[str] = []
    if one.devices and two.devices and one.kind != two.kind:
        notes.append(f"one source lists {one.kind} devices, another {two.kind}: the first are used")
        two = replace(two, kind=one.kind, devices=(), matrix=(), nic_matrix=())
    if not one.devices:
        one = replace(one, kind=two.kind, devices=two.devices, matrix=two.matrix, nic_matrix=())
        pairs = {i: i for i in range(len(two.devices))}
    else:
        pairs = _pair_devices(one.devices, two.devices)
    if two.devices and len(one.devices) != len(two.devices):
        notes.append(
            f"{len(one.devices)} GPUs ({_source_of(one)}), but {len(two.devices)} "
            f"({_source_of(two)}): the first are used"
        )
    devices = tuple(
        _merge_part(device, two.devices[pairs[i]], DEVICE_FACTS, f"gpu {device.index}", notes)
        if i in pairs
        else device
        for i, device in enumerate(one.devices)
    )
    matrix, differing = _merge_matrix(one, two, pairs)
    if differing:
        i, j, good, bad = differing[0]
        notes.append(
            f"{len(differing)} links differ, such as gpu {i} to {j}: {good} "
            f"({one.sources.get('matrix', 'file')}), but {bad} "
            f"({two.sources.get('matrix', 'file')}): the first are used"
        )
    one, two = _without_usual_nics(one, two), _without_usual_nics(two, one)
    nics, nic_matrix = _merge_nics(one, two, pairs, notes)
    sources = {**two.sources, **one.sources}
    if "matrix" in two.sources and matrix != one.matrix:
        sources["matrix"] = _both(one, two, "matrix")
    merged = replace(
        one,
        devices=devices,
        matrix=matrix,
        nics=nics,
        nic_matrix=nic_matrix,
        sources=sources,
    )
    return _merge_part(merged, two, NODE_FACTS, "host", notes), notes


def _pair_devices(one: Sequence[Device], two: Sequence[Device]) -> dict[int, int]:
    """Position in `two` of each device of `one` that is also there."""
    for identity in ("uuid", "pci"):
        there = {
            getattr(device, identity): position
            for position, device in enumerate(two)
            if getattr(device, identity) is not None
        }
        pairs = {
            position: there[getattr(device, identity)]
            for position, device in enumerate(one)
            if getattr(device, identity) in there
        }
        if pairs:
            return pairs
    at = {device.index: position for position, device in enumerate(two)}
    return {
        position: at[device.index]
        for position, device in enumerate(one)
        if device.index in at and _may_be_one(device, two[at[device.index]])
    }


def _may_be_one(one: Device, two: Device) -> bool:
    """Equal index is not enough where both say who they are, and differ."""
    return not any(
        getattr(one, identity) and getattr(two, identity) for identity in ("uuid", "pci")
    )


def _merge_part(one: Part, two: Part, facts: Sequence[str], what: str, notes: list[str]) -> Part:
    """Take each fact from the better of two descriptions of one thing."""
    changes: dict[str, Any] = {}
    sources = dict(one.sources)
    for fact in facts:
        mine, theirs = getattr(one, fact), getattr(two, fact)
        my_source, their_source = one.sources.get(fact), two.sources.get(fact)
        if theirs is None or mine == theirs:
            continue
        swap = mine is None or fact_rank(fact, their_source) < fact_rank(fact, my_source)
        if swap:
            changes[fact] = theirs
            sources.pop(fact, None)
            if their_source is not None:
                sources[fact] = their_source
        witnesses = is_witness(my_source) and is_witness(their_source)
        if mine is not None and witnesses and not _same(fact, mine, theirs):
            used, other = (theirs, mine) if swap else (mine, theirs)
            by, not_by = (their_source, my_source) if swap else (my_source, their_source)
            notes.append(
                f"{what}: {fact} is {used} ({by or 'file'}), but {other} ({not_by or 'file'}): "
                "the first is used"
            )
    if isinstance(one, Device) and isinstance(two, Device) and two.faults:
        changes["faults"] = tuple(dict.fromkeys((*one.faults, *two.faults)))
        sources.setdefault("faults", two.sources.get("faults", _first(two.sources)))
    if not changes:
        return one
    return replace(one, **changes, sources=sources)


def _same(fact: str, one: Any, two: Any) -> bool:
    if fact == "memory_bytes" and one and two:
        return bool(abs(one - two) <= SAME_MEMORY * max(one, two))
    return bool(one == two)


def _merge_matrix(
    one: Hardware, two: Hardware, pairs: Mapping[int, int]
) -> tuple[Matrix, list[tuple[int, int, str, str]]]:
    """Fill unknown cells from the other; list cells on which two witnesses differ."""
    if not one.matrix or not two.matrix:
        return one.matrix, []
    # who lists the devices need not be who knows the links best: a table only fills gaps
    yield_to_two = not is_witness(one.sources.get("matrix")) and is_witness(
        two.sources.get("matrix")
    )
    both_saw = is_witness(one.sources.get("matrix")) and is_witness(two.sources.get("matrix"))
    differing: list[tuple[int, int, str, str]] = []
    rows = []
    for i, row in enumerate(one.matrix):
        cells = list(row)
        for j, code in enumerate(row):
            if i == j or i not in pairs or j not in pairs:
                continue
            other = two.matrix[pairs[i]][pairs[j]]
            if other in ("?", code):
                continue
            if code == "?" or yield_to_two or _is_no_path(one, code, other):
                cells[j] = other
            elif _is_no_path(two, other, code):
                continue
            elif both_saw and i < j:
                differing.append((one.devices[i].index, one.devices[j].index, code, other))
        rows.append(tuple(cells))
    return tuple(rows), differing


def _is_no_path(hardware: Hardware, code: str, other: str) -> bool:
    """Whether a code only says `no NVLink`, and the other one names the path through PCIe.

    A list of NVLinks does not know the paths of what it does not join.
    """
    source = hardware.sources.get("matrix", "")
    return source.startswith("nvidia-smi nvlink") and {code, other} <= PCIE_CODES


def _merge_nics(
    one: Hardware, two: Hardware, pairs: Mapping[int, int], notes: list[str]
) -> tuple[tuple[Nic, ...], Matrix]:
    """All NICs of either, those of `one` first; a NIC is known by its name or PCI address."""
    if not two.nics:
        return one.nics, one.nic_matrix
    place: dict[int, int] = {}  # position in two -> position in the result
    nics = list(one.nics)
    for position, nic in enumerate(two.nics):
        known = next(
            (
                i
                for i, mine in enumerate(one.nics)
                if mine.name == nic.name or (mine.pci is not None and mine.pci == nic.pci)
            ),
            None,
        )
        if known is None:
            place[position] = len(nics)
            nics.append(nic)
        else:
            place[position] = known
            nics[known] = _merge_part(nics[known], nic, NIC_FACTS, f"NIC {nic.name}", notes)
    cells = [
        list(one.nic_matrix[i]) + ["?"] * (len(nics) - len(one.nics))
        if one.nic_matrix
        else ["?"] * len(nics)
        for i in range(len(one.devices))
    ]
    for i, there in pairs.items():
        for position, column in place.items():
            if two.nic_matrix and cells[i][column] == "?":
                cells[i][column] = two.nic_matrix[there][position]
    return tuple(nics), tuple(map(tuple, cells))


def _without_usual_nics(one: Hardware, two: Hardware) -> Hardware:
    """`one` without the NICs that its product usually has, where `two` has seen the real ones."""
    usual, seen = (not is_witness(part.sources.get("nics")) for part in (one, two))
    if not (one.nics and two.nics and usual and not seen):
        return one
    kept = {key: source for key, source in one.sources.items() if key not in NIC_SOURCES}
    return replace(one, nics=(), nic_matrix=(), sources=kept)


def _source_of(hardware: Hardware) -> str:
    device: Mapping[str, str] = hardware.devices[0].sources if hardware.devices else {}
    return device.get("index") or device.get("uuid") or _first(device) or "file"


def _first(sources: Mapping[str, str]) -> str:
    return next(iter(sources.values()), "file")


def _both(one: Hardware, two: Hardware, key: str) -> str:
    words = (one.sources.get(key), two.sources.get(key))
    return ", ".join(dict.fromkeys(word for word in words if word))
