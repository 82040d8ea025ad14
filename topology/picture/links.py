"""What joins the devices of one node, as a drawing.

A full mesh with one link count is a bar that touches its members (a broken GPU stands below the bar
and does not touch it); anything less regular is one arc per pair, as thick as it has links. Below
the devices, cables lead to the NICs that share a PCIe bridge with them::

        =======NV18========          .-----.
        |   |       |   |           / .-.   \\
       [0] [1] [2] [3] [4]         [0] [1] [2]
        |   |       |   |
       nic nic     nic nic
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

from parctl.topology.describe import link_text
from parctl.topology.links import link_count
from parctl.topology.model import Hardware
from parctl.topology.picture.drawing import fitted, group, label, rectangle

CELL = 84  # width of a device or NIC
PALETTE = 8  # colours for meshes and for rails; they repeat after that
BAR = 28  # height of a bar with its gap
RISE = 0.26  # how steep arcs are

Meshes = Sequence[int | None]  # number of each device's full mesh


def mesh_style(number: int | None) -> str:
    return "alone" if number is None else f"m{number % PALETTE}"


def draw_links(
    hardware: Hardware, mesh: Meshes, x_of: Mapping[int, float], *, above_feet: float
) -> tuple[str, float]:
    """Draw bars and arcs, and say how high they are; their feet stand `above_feet` lower."""
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
    stacked = _stacked(bars, middle)
    top = 0.0 + BAR * max((row + 1 for row, _, _ in stacked), default=0)
    top += max((RISE * span + 14 for span in spans), default=0) * 0.75
    feet = top + above_feet
    parts = [_bar(members, text, mesh, middle, feet, row) for row, members, text in stacked]
    parts += [_arc(i, j, links, mesh, middle, feet, hardware) for i, j, links in arcs]
    return "\n".join(parts), top


def draw_cables(
    hardware: Hardware,
    x_of: Mapping[int, float],
    sockets: Mapping[int, tuple[float, float]],
    top: float,
) -> str:
    """Lines from each device to the NICs it shares a PCIe bridge with; `sockets` are their tops."""
    lines = []
    for i, row in enumerate(hardware.nic_matrix):
        for k, code in enumerate(row):
            if code in ("PIX", "PXB"):
                a, b, bottom = x_of[i] + CELL / 2, sockets[k][0] + CELL / 2, sockets[k][1]
                bend = (top + bottom) / 2
                path = f"M{a:g} {top:g}C{a:g} {bend:g} {b:g} {bend:g} {b:g} {bottom:g}"
                lines.append(f'<path d="{path}" class="cable {code.lower()}"/>')
    return "".join(lines)


def _stacked(
    bars: Sequence[tuple[tuple[int, ...], str]], middle: Mapping[int, float]
) -> list[tuple[int, tuple[int, ...], str]]:
    """Give bars that would overlap different rows."""
    ends: list[float] = []
    placed = []
    for members, text in sorted(bars, key=lambda bar: min(middle[i] for i in bar[0])):
        left, right = min(middle[i] for i in members), max(middle[i] for i in members)
        row = next((row for row, end in enumerate(ends) if end < left), len(ends))
        ends[row : row + 1] = [right + 44]  # bars reach 20 past their outer members
        placed.append((row, members, text))
    return placed


def _bar(
    members: Sequence[int],
    text: str,
    mesh: Meshes,
    middle: Mapping[int, float],
    feet: float,
    row: int,
) -> str:
    colour = mesh_style(mesh[members[0]])
    left, right = min(middle[i] for i in members) - 20, max(middle[i] for i in members) + 20
    y = feet - 10 - BAR * (row + 1)
    stubs = "".join(f'<path d="M{middle[i]:g} {y + 18:g}V{feet:g}" class="stub"/>' for i in members)
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
    mesh: Meshes,
    middle: Mapping[int, float],
    feet: float,
    hardware: Hardware,
) -> str:
    a, b = sorted((middle[i], middle[j]))
    rise = 14 + (b - a) * RISE
    path = f"M{a:g} {feet:g}C{a:g} {feet - rise:g} {b:g} {feet - rise:g} {b:g} {feet:g}"
    same = mesh[i] is not None and mesh[i] == mesh[j]
    colour = mesh_style(mesh[i]) if same else "between"
    ends = f"gpu {hardware.devices[i].index} - gpu {hardware.devices[j].index}"
    line = f'<path d="{path}" class="arc" stroke-width="{0.5 + 1.5 * min(links, 4):g}"/>'
    return group(line, f"links {colour}", f"{ends}: {hardware.matrix[i][j]}")
