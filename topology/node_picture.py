"""One node as a drawing, in detail or small.

In detail, devices stand in a row by NUMA node; what joins them arches above, NICs stand below the
devices that they are near. A full mesh with one link count is a bar that touches its members (a
broken GPU hangs below the bar and does not touch it); anything less regular is one arc per pair, as
thick as it has links::

        =======NV18========          .-----.
        |   |       |   |           / .-.   \\
       [0] [1] [2] [3] [4]         [0] [1] [2]
        |   |       |   |
       nic nic     nic nic
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from parctl.topology.describe import link_text
from parctl.topology.drawing import (
    Drawing,
    beside,
    escaped,
    fitted,
    group,
    label,
    rectangle,
)
from parctl.topology.link_findings import NEARNESS
from parctl.topology.links import link_count
from parctl.topology.model import Device, Hardware, Nic

CELL, GAP = 84, 10
GPU_HEIGHT, NIC_HEIGHT, CABLE = 62, 40, 26
PALETTE = 8  # colours for meshes and for rails; they repeat after that
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MAX_DETAIL = 16  # devices of a node drawn in detail
SMALL, PER_ROW = 18, 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a node's drawing needs beside its hardware."""

    mesh: tuple[int | None, ...]  # colour number of each device's full mesh
    faults: Mapping[int, str]  # by device index: shown in red
    notes: Mapping[int, str]  # by device index: worth knowing, shown under the pointer


def look_of(
    hardware: Hardware, faults: Mapping[int, str], notes: Mapping[int, str], domain: int | None
) -> Look:
    """Number the full meshes of a node; in a rack-scale domain all linked devices are one mesh."""
    mesh: list[int | None] = [None] * len(hardware.devices)
    for number, (members, _) in enumerate(hardware.nvlink_cliques):
        for i in members:
            mesh[i] = number if domain is None else domain
    return Look(mesh=tuple(mesh), faults=faults, notes=notes)


def detailed_node(hardware: Hardware, look: Look) -> Drawing:
    """Draw devices, links and NICs of one node."""
    devices = hardware.devices
    columns = _columns(hardware)
    x_of: dict[int, float] = {}
    x_of_nic: dict[int, float] = {}
    frames: list[tuple[float, float, str]] = []
    x = 0.0
    for title, members, nics in columns:
        width = max(len(members), len(nics)) * (CELL + GAP) + GAP
        frames.append((x, width, title))
        x_of |= {i: x + GAP + k * (CELL + GAP) for k, i in enumerate(members)}
        x_of_nic |= {i: x + GAP + k * (CELL + GAP) for k, i in enumerate(nics)}
        x += width + GAP
    total = x - GAP
    links, top = _links(hardware, look, x_of)
    y_gpu = top + 24
    y_nic = y_gpu + GPU_HEIGHT + CABLE
    bottom = (y_nic + NIC_HEIGHT if hardware.nics else y_gpu + GPU_HEIGHT) + GAP
    parts = [
        rectangle(x, top, width, bottom - top, "numa")
        + label(fitted(title, width - GAP, 11), x + GAP, top + 16, size=11, style="dim")
        for x, width, title in frames
    ]
    parts += [_cables(hardware, x_of, x_of_nic, y_gpu + GPU_HEIGHT, y_nic), links]
    parts += [
        _device(device, look, i, hardware.kind, x_of[i], y_gpu) for i, device in enumerate(devices)
    ]
    parts += [_nic(nic, x_of_nic[i], y_nic) for i, nic in enumerate(hardware.nics)]
    return Drawing(total, bottom, "\n".join(parts))


def small_node(hardware: Hardware, look: Look, name: str) -> Drawing:
    """Draw a node as its name, a square per device and a dot per NIC."""
    per_row = min(PER_ROW, max(1, len(hardware.devices)))
    width = max(per_row * (SMALL + 3) - 3, 74)
    parts = [label(fitted(name, width, 10), 0, 9, size=10, style="t")]
    y = 14.0
    for i, device in enumerate(hardware.devices):
        x = (i % per_row) * (SMALL + 3)
        row = y + (i // per_row) * (SMALL + 3)
        parts.append(_square(device, look, i, hardware.kind, x, row))
    y += -(-len(hardware.devices) // per_row) * (SMALL + 3)
    for i, nic in enumerate(hardware.nics):
        x, row = (i % per_row) * (SMALL + 3) + SMALL / 2, y + 5 + (i // per_row) * 11
        dot = f'<circle cx="{x:g}" cy="{row:g}" r="4"/>'
        parts.append(group(dot, f"nic {_rail(nic)}", _nic_title(nic)))
    y += -(-len(hardware.nics) // per_row) * 11
    return Drawing(width, y, "".join(parts))


def _columns(hardware: Hardware) -> list[tuple[str, list[int], list[int]]]:
    """(title, devices, NICs) per NUMA node; a NIC stands with the devices that it is nearest to."""
    places: dict[int | None, tuple[list[int], list[int]]] = {}
    for i, device in enumerate(hardware.devices):
        places.setdefault(device.numa, ([], []))[0].append(i)
    nearest = {i: _nearest_device(hardware, i) for i in range(len(hardware.nics))}
    for i, nic in enumerate(hardware.nics):
        near = nearest[i]
        numa = nic.numa if near is None else hardware.devices[near].numa
        if numa not in places and None in places:
            numa = None
        places.setdefault(numa, ([], []))[1].append(i)
    for _, nics in places.values():
        nics.sort(key=lambda i: (len(hardware.devices) if (n := nearest[i]) is None else n, i))
    order = sorted(places, key=lambda numa: (numa is None, numa or 0))
    kind = "NUMA node"
    return [(f"{kind} {'unknown' if n is None else n}", *places[n]) for n in order]


def _nearest_device(hardware: Hardware, nic: int) -> int | None:
    """The lowest device of those nearest to a NIC; None when all are equally far or unknown."""
    codes = [row[nic] for row in hardware.nic_matrix]
    ranked = [(NEARNESS[code], i) for i, code in enumerate(codes) if code in NEARNESS]
    if not ranked or len({rank for rank, _ in ranked}) == 1 < len(codes):
        return None
    return min(ranked)[1]


def _links(hardware: Hardware, look: Look, x_of: Mapping[int, float]) -> tuple[str, float]:
    """The bars and arcs between devices, and the height they take above the NUMA frames."""
    bars, arcs = [], []
    regular: set[int] = set()
    for members, least in hardware.nvlink_cliques:
        codes = {hardware.matrix[i][j] for i in members for j in members if i != j}
        whole = any(set(members) == set(linked) for linked in hardware.nvlink_groups)
        if len(codes) == 1 and whole and len(members) > 1:
            bars.append((members, link_text(hardware, members, least)))
            regular |= set(members)
    for i, j in combinations(range(len(hardware.devices)), 2):
        links = min(link_count(hardware.matrix[i][j]), link_count(hardware.matrix[j][i]))
        if links and not {i, j} <= regular:
            arcs.append((i, j, links))
    middle = {i: x + CELL / 2 for i, x in x_of.items()}
    spans = [abs(middle[i] - middle[j]) for i, j, _ in arcs]
    top = 8.0 + max(spans, default=0) * 0.17 + (14 if arcs else 0) + 26 * _rows(bars, middle)
    feet = top + 24
    parts = [
        _bar(members, text, look, middle, feet, row)
        for row, members, text in _stacked(bars, middle)
    ]
    parts += [_arc(i, j, links, look, middle, feet, hardware) for i, j, links in arcs]
    return "\n".join(parts), top


def _stacked(
    bars: Sequence[tuple[tuple[int, ...], str]], middle: Mapping[int, float]
) -> list[tuple[int, tuple[int, ...], str]]:
    """Give bars that would overlap different rows."""
    ends: list[float] = []
    placed = []
    for members, text in sorted(bars, key=lambda bar: min(middle[i] for i in bar[0])):
        left, right = min(middle[i] for i in members), max(middle[i] for i in members)
        row = next((row for row, end in enumerate(ends) if end < left), len(ends))
        ends[row : row + 1] = [right + GAP]
        placed.append((row, members, text))
    return placed


def _rows(bars: Sequence[tuple[tuple[int, ...], str]], middle: Mapping[int, float]) -> int:
    return max((row + 1 for row, _, _ in _stacked(bars, middle)), default=0)


def _bar(
    members: Sequence[int],
    text: str,
    look: Look,
    middle: Mapping[int, float],
    feet: float,
    row: int,
) -> str:
    colour = _mesh(look.mesh[members[0]])
    left, right = min(middle[i] for i in members) - 20, max(middle[i] for i in members) + 20
    y = feet - 24 - 26 * (row + 1)
    stubs = "".join(
        f'<path d="M{middle[i]:g} {y + 18:g}V{feet:g}" class="stub"/>' for i in members
    )
    say = f"{text} between every pair" if len(members) > 2 else text
    bar = rectangle(left, y, right - left, 18, "bar", radius=9)
    words = label(
        fitted(say, right - left - 8, 11), (left + right) / 2, y + 13, size=11, anchor="middle"
    )
    return group(stubs + bar + words, f"links {colour}")


def _arc(
    i: int,
    j: int,
    links: int,
    look: Look,
    middle: Mapping[int, float],
    feet: float,
    hardware: Hardware,
) -> str:
    a, b = sorted((middle[i], middle[j]))
    rise = 16 + (b - a) * 0.23
    path = f"M{a:g} {feet:g}C{a:g} {feet - rise:g} {b:g} {feet - rise:g} {b:g} {feet:g}"
    same = look.mesh[i] is not None and look.mesh[i] == look.mesh[j]
    colour = _mesh(look.mesh[i]) if same else "between"
    ends = f"gpu {hardware.devices[i].index} - gpu {hardware.devices[j].index}"
    line = f'<path d="{path}" class="arc" stroke-width="{1.2 * min(links, 6):g}"/>'
    return group(line, f"links {colour}", f"{ends}: {hardware.matrix[i][j]}")


def _device(device: Device, look: Look, i: int, kind: str, x: float, y: float) -> str:
    fault = look.faults.get(device.index)
    mesh = look.mesh[i]
    name = f"{'GPU' if kind == 'gpu' else 'CPU'} {device.index}"
    middle = x + CELL / 2
    body = rectangle(x, y, CELL, GPU_HEIGHT, "body", radius=6)
    body += label(name, middle, y + 22, size=14, style="t", anchor="middle")
    if kind == "gpu":
        joined = "no NVLink" if mesh is None else f"mesh {LETTERS[mesh % 26]}"
        body += label(joined, middle, y + 38, size=10, anchor="middle")
    under = "FAULT" if fault else (device.pci or "").removeprefix("0000:")
    body += label(
        fitted(under, CELL - 4, 10),
        middle,
        y + 53,
        size=10,
        style="bad" if fault else "dim",
        anchor="middle",
    )
    if fault:
        body += _cross(x + CELL - 18, y + 4, 13)
    return group(body, _classes(look, device, mesh), _device_title(device, look))


def _square(device: Device, look: Look, i: int, kind: str, x: float, y: float) -> str:
    body = rectangle(x, y, SMALL, SMALL, "body", radius=3)
    body += label(str(device.index), x + SMALL / 2, y + 13, size=9, anchor="middle")
    if device.index in look.faults:
        body += _cross(x + 1, y + 1, SMALL - 2)
    return group(body, _classes(look, device, look.mesh[i]), _device_title(device, look))


def _classes(look: Look, device: Device, mesh: int | None) -> str:
    return f"gpu {_mesh(mesh)}{' faulty' if device.index in look.faults else ''}"


def _mesh(number: int | None) -> str:
    return "alone" if number is None else f"m{number % PALETTE}"


def _rail(nic: Nic) -> str:
    return "no-rail" if nic.rail is None else f"r{nic.rail % PALETTE}"


def _cross(x: float, y: float, size: float) -> str:
    return f'<path d="M{x:g} {y:g}l{size:g} {size:g}m0 {-size:g}l{-size:g} {size:g}" class="x"/>'


def _device_title(device: Device, look: Look) -> str:
    facts = {
        "product": device.product,
        "uuid": device.uuid,
        "pci": device.pci,
        "NUMA node": device.numa,
        "CPUs": device.cpu_affinity,
    }
    lines = [f"device {device.index}"]
    lines += [f"{key}: {'unknown' if value is None else value}" for key, value in facts.items()]
    lines += [text[device.index] for text in (look.faults, look.notes) if device.index in text]
    return "\n".join(lines)


def _nic(nic: Nic, x: float, y: float) -> str:
    middle = x + CELL / 2
    speed = "" if nic.speed_gbit_s is None else f"{nic.speed_gbit_s:g}G"
    rail = "" if nic.rail is None else f"rail {nic.rail}"
    body = rectangle(x, y, CELL, NIC_HEIGHT, "body", radius=6)
    body += label(fitted(nic.name, CELL - 8, 11), middle, y + 16, size=11, anchor="middle")
    body += label(
        escaped(" ".join(filter(None, (speed, rail))) or "NIC"),
        middle,
        y + 31,
        size=10,
        style="dim",
        anchor="middle",
    )
    return group(body, f"nic {_rail(nic)}", _nic_title(nic))


def _nic_title(nic: Nic) -> str:
    facts = {"rail": nic.rail, "Gbit/s": nic.speed_gbit_s, "NUMA node": nic.numa, "pci": nic.pci}
    lines = [f"{key}: {'unknown' if value is None else value}" for key, value in facts.items()]
    return "\n".join([nic.name, *lines])


def _cables(
    hardware: Hardware,
    x_of: Mapping[int, float],
    x_of_nic: Mapping[int, float],
    top: float,
    bottom: float,
) -> str:
    """Lines from each device to the NICs it shares a PCIe bridge with."""
    lines = []
    for i, row in enumerate(hardware.nic_matrix):
        for k, code in enumerate(row):
            if code in ("PIX", "PXB"):
                a, b = x_of[i] + CELL / 2, x_of_nic[k] + CELL / 2
                bend = (top + bottom) / 2
                path = f"M{a:g} {top:g}C{a:g} {bend:g} {b:g} {bend:g} {b:g} {bottom:g}"
                lines.append(f'<path d="{path}" class="cable {code.lower()}"/>')
    return "".join(lines)


__all__ = ["MAX_DETAIL", "PALETTE", "Look", "beside", "detailed_node", "look_of", "small_node"]
