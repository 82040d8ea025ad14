"""One node as a drawing, in detail or small.

In detail, devices stand in a row by NUMA node, what joins them is above (`links_picture`), and NICs
stand below the devices that they are near. Small, a node is a square per device and a dot per NIC:
under its name, or beside it as a tray of a rack.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from parctl.topology.check.link_findings import NEARNESS
from parctl.topology.model import Device, Hardware, Nic
from parctl.topology.picture.drawing import (
    Drawing,
    fitted,
    group,
    label,
    rectangle,
    text_width,
)
from parctl.topology.picture.links import CELL, PALETTE, draw_cables, draw_links, mesh_style

GAP = 10
NICS_PER_ROW = 6
GPU_HEIGHT, NIC_HEIGHT, CABLE = 62, 40, 26
NUMA_TITLE = 18  # height
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
    nic_at: dict[int, tuple[float, int]] = {}  # x, row
    frames: list[tuple[float, float, str]] = []
    x = 0.0
    for title, members, nics in columns:
        num_columns = max(len(members), min(len(nics), NICS_PER_ROW))
        left = x + GAP
        x_of |= {i: left + k * (CELL + GAP) for k, i in enumerate(members)}
        for i, cell in _seats(hardware, members, nics, num_columns).items():
            nic_at[i] = left + cell % num_columns * (CELL + GAP), cell // num_columns
        width = num_columns * (CELL + GAP) + GAP
        frames.append((x, width, title))
        x += width + GAP
    total = x - GAP
    links, top = draw_links(hardware, look.mesh, x_of, above_feet=GAP)
    y_gpu = top + GAP
    y_nic = y_gpu + GPU_HEIGHT + CABLE
    num_rows = max((row + 1 for _, row in nic_at.values()), default=0)
    below_nics = y_nic + num_rows * (NIC_HEIGHT + 6) - 6
    y_title = (below_nics if num_rows else y_gpu + GPU_HEIGHT) + NUMA_TITLE
    bottom = y_title + 6
    parts = [
        group(
            rectangle(x, top, width, bottom - top, "numa")
            + label(fitted(title, width - GAP, 11), x + GAP, y_title, size=11, style="dim"),
            "numa-box",
        )
        for x, width, title in frames
    ]
    y_of_nic = {i: y_nic + row * (NIC_HEIGHT + 6) for i, (_, row) in nic_at.items()}
    sockets = {i: (x, y_of_nic[i]) for i, (x, _) in nic_at.items()}
    parts += [draw_cables(hardware, x_of, sockets, y_gpu + GPU_HEIGHT), links]
    parts += [
        _device(device, look, i, _joined(hardware, look, i), x_of[i], y_gpu)
        for i, device in enumerate(devices)
    ]
    parts += [_nic(nic, *sockets[i]) for i, nic in enumerate(hardware.nics)]
    return Drawing(total, bottom, "\n".join(parts))


def tray(hardware: Hardware, look: Look, name: str, name_width: float) -> Drawing:
    """Draw a node as one line: its name, a square per device, a dot per NIC."""
    parts = [label(fitted(name, name_width, 10), 0, 13, size=10, style="t")]
    x = name_width + 6
    for i, device in enumerate(hardware.devices):
        parts.append(_square(device, look, look.mesh[i], x, 0))
        x += SMALL + 3
    for nic in hardware.nics:
        parts.append(_dot(nic, x + 8, SMALL / 2))
        x += 11
    return Drawing(x + 3, SMALL, "".join(parts))


def small_node(hardware: Hardware, look: Look, name: str) -> Drawing:
    """Draw a node as its name, and below it a square per device and a dot per NIC."""
    per_row = min(PER_ROW, max(1, len(hardware.devices)))
    width = max(per_row * (SMALL + 3) - 3, min(180, text_width(name, 10)))
    parts = [label(fitted(name, width, 10), 0, 9, size=10, style="t")]
    y = 14.0
    for i, device in enumerate(hardware.devices):
        x = (i % per_row) * (SMALL + 3)
        row = y + (i // per_row) * (SMALL + 3)
        parts.append(_square(device, look, look.mesh[i], x, row))
    y += -(-len(hardware.devices) // per_row) * (SMALL + 3)
    for i, nic in enumerate(hardware.nics):
        x_dot = (i % per_row) * (SMALL + 3) + SMALL / 2
        parts.append(_dot(nic, x_dot, y + 5 + (i // per_row) * 11))
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


def _seats(
    hardware: Hardware, members: Sequence[int], nics: Sequence[int], num_columns: int
) -> dict[int, int]:
    """Seat each NIC under its nearest device if that cell is free, else in the first free one."""
    seats: dict[int, int] = {}
    for i in nics:
        near = _nearest_device(hardware, i)
        if near in members and members.index(near) not in seats.values():
            seats[i] = members.index(near)
    taken = set(seats.values())
    free = (cell for cell in count() if cell not in taken)
    for i in nics:
        if i not in seats:
            seats[i] = next(free)
    return seats


def _joined(hardware: Hardware, look: Look, i: int) -> str:
    """What a device says of its links."""
    if hardware.kind == "cpu":
        return ""
    if (mesh := look.mesh[i]) is not None:
        return f"mesh {LETTERS[mesh % 26]}"
    return "links unknown" if "?" in hardware.matrix[i] else "no NVLink"


def _nearest_device(hardware: Hardware, nic: int) -> int | None:
    """The lowest device of those nearest to a NIC; None when all are equally far or unknown."""
    codes = [row[nic] for row in hardware.nic_matrix]
    ranked = [(NEARNESS[code], i) for i, code in enumerate(codes) if code in NEARNESS]
    if not ranked or len({rank for rank, _ in ranked}) == 1 < len(codes):
        return None
    return min(ranked)[1]


def _device(device: Device, look: Look, i: int, joined: str, x: float, y: float) -> str:
    fault = look.faults.get(device.index)
    mesh = look.mesh[i]
    middle = x + CELL / 2
    body = rectangle(x, y, CELL, GPU_HEIGHT, "body", radius=6)
    name = f"{'GPU' if joined else 'CPU'} {device.index}"
    body += label(name, middle, y + 22, size=14, style="t", anchor="middle")
    body += label(joined, middle, y + 38, size=10, anchor="middle") if joined else ""
    if under := "FAULT" if fault else (device.pci or "").removeprefix("0000:"):
        style = "bad" if fault else "dim"
        text = fitted(under, CELL - 4, 10)
        body += label(text, middle, y + 53, size=10, style=style, anchor="middle")
    if fault:
        body += _cross(x + CELL - 15, y + 4, 11)
    return group(body, _classes(look, device, mesh), _device_title(device, look))


def _square(device: Device, look: Look, mesh: int | None, x: float, y: float) -> str:
    body = rectangle(x, y, SMALL, SMALL, "body", radius=3)
    body += label(str(device.index), x + SMALL / 2, y + 13, size=9, anchor="middle")
    if device.index in look.faults:
        body += _cross(x + 1, y + 1, SMALL - 2)
    return group(body, _classes(look, device, mesh), _device_title(device, look))


def _classes(look: Look, device: Device, mesh: int | None) -> str:
    return f"gpu {mesh_style(mesh)}{' faulty' if device.index in look.faults else ''}"


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
    facts = " ".join(filter(None, (speed, rail)))
    body += label(facts, middle, y + 31, size=10, style="dim", anchor="middle") if facts else ""
    return group(body, f"nic {_rail(nic)}", _nic_title(nic))


def _dot(nic: Nic, x: float, y: float) -> str:
    dot = f'<circle cx="{x:g}" cy="{y:g}" r="4"/>'
    return group(dot, f"nic {_rail(nic)}", _nic_title(nic))


def _nic_title(nic: Nic) -> str:
    facts = {"rail": nic.rail, "Gbit/s": nic.speed_gbit_s, "NUMA node": nic.numa, "pci": nic.pci}
    lines = [f"{key}: {'unknown' if value is None else value}" for key, value in facts.items()]
    return "\n".join([nic.name, *lines])
