"""The cluster as an SVG picture: fabric blocks > NVLink domains > nodes > GPUs and NICs.

A few nodes are drawn in detail. Many are drawn small, under one detailed node of each kind; equal
neighbours then share one drawing with their number, so a cluster of any size stays one page. GPUs
are coloured by full NVLink mesh, NICs by rail, faults are red and crossed; letters and numbers say
the same as the colours.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby

from parctl.topology.check.findings import Finding, find_problems
from parctl.topology.describe import (
    devices_text,
    headline,
    links_text,
    memory_text,
    name_range,
    nodes_alike,
)
from parctl.topology.model import Hardware, Node, Topology
from parctl.topology.picture.drawing import (
    Drawing,
    below,
    beside,
    escaped,
    fitted,
    framed,
    group,
    label,
    moved,
    rectangle,
    text_width,
    wrapped,
)
from parctl.topology.picture.links import PALETTE
from parctl.topology.picture.nodes import (
    MAX_DETAIL,
    Look,
    detailed_node,
    look_of,
    small_node,
    tray,
)

DETAILED_NODES = 4  # up to this many, all are drawn in detail
KINDS_IN_DETAIL = 3
DRAWN_SMALL = 200  # up to this many nodes each has its own drawing
MAX_PARTS = 60  # drawings in one frame; the rest is counted
WIDTH = 1200
MARGIN = 24

# Okabe and Ito's colours, which people with any colour vision can tell apart
COLOURS = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#d55e00",
    "#b8a900",
    "#6a51a3",
)
STYLE = """
text{font-family:ui-sans-serif,system-ui,"DejaVu Sans",Arial,sans-serif;fill:#1f2933}
.t{font-weight:600}.dim{fill:#52606d}.bad{fill:#b00020;font-weight:700}
.page{fill:#fff}.block{fill:#f5f7fa;stroke:#cbd2d9}.rack{fill:#fff;stroke:#7b8794}
.host{fill:#fff;stroke:#cbd2d9}.numa{fill:#eef2f6;stroke:#d9e2ec}
.gpu .body{stroke-width:1.5}.alone .body{fill:#fff;stroke:#7b8794;stroke-dasharray:4 3}
.faulty .body{stroke:#b00020;stroke-width:2.5;stroke-dasharray:none}
.x{stroke:#b00020;stroke-width:2.5;fill:none}
.bar{stroke-width:1}.arc{fill:none;stroke-opacity:.8}.between .arc{stroke:#9aa5b1}
.legend-arc{stroke:#52606d;stroke-width:2}.stub{fill:none;stroke-width:3}
.cable{fill:none;stroke:#9aa5b1;stroke-width:1.5}.pxb{stroke-dasharray:5 3}
.nic .body{fill:#fff;stroke-width:2}.no-rail .body,.no-rail circle{stroke:#7b8794;fill:#fff}
""" + "".join(
    f".m{i} .body{{fill:{colour}33;stroke:{colour}}}.m{i} .bar{{fill:{colour}33;stroke:{colour}}}"
    f".m{i} .arc,.m{i} .stub{{stroke:{colour}}}"
    f".r{i} .body{{stroke:{colour}}}.r{i} circle{{fill:{colour}}}\n"
    for i, colour in enumerate(COLOURS)
)


def topology_to_svg(topology: Topology) -> str:
    """Draw the cluster. Equal topologies give equal text."""
    problems = find_problems(topology)
    looks = _looks(topology, problems)
    small = len(topology.nodes) > DETAILED_NODES or not all(
        0 < len(node.hardware.devices) <= MAX_DETAIL for node in topology.nodes
    )
    parts = [_kinds(topology, looks)] if small else []
    parts.append(_cluster(topology, looks, small))
    parts = [part for part in parts if part.width]
    parts.append(_legend(topology, looks))
    inner = below(parts, 18)
    title = headline(topology)
    width = max(inner.width, min(WIDTH, text_width(title, 18)), 420) + 2 * MARGIN
    top = 64
    height = inner.height + top + MARGIN
    faults = sum(problem.fault for problem in problems)
    status = f"{faults} fault{'s' * (faults != 1)}" if faults else "no fault found"
    body = rectangle(0, 0, width, height, "page", radius=0)
    body += label(fitted(title, width - 2 * MARGIN, 18), MARGIN, 32, size=18, style="t")
    body += label(status, MARGIN, 51, size=12, style="bad" if faults else "dim")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" height="{height:g}" role="img">\n<title>{escaped(title)}</title>\n'
        f"<style>{STYLE}</style>\n{body}\n{moved(inner, MARGIN, top)}\n</svg>\n"
    )


def _looks(topology: Topology, problems: Sequence[Finding]) -> dict[str, Look]:
    """The look of every node, by name."""
    faults: dict[str, dict[int, str]] = {}
    notes: dict[str, dict[int, str]] = {}
    for problem in problems:
        told = faults if problem.fault else notes
        for name in problem.nodes:
            for index in problem.gpus:
                told.setdefault(name, {}).setdefault(index, problem.message)
    sizes: dict[str, int] = {}
    for node in topology.nodes:
        if node.domain is not None:
            sizes[node.domain] = sizes.get(node.domain, 0) + 1
    numbers: dict[str, int] = {}
    looks = {}
    for node in topology.nodes:
        number = None
        if node.domain is not None and sizes[node.domain] > 1:
            number = numbers.setdefault(node.domain, len(numbers))
        looks[node.name] = look_of(
            node.hardware, faults.get(node.name, {}), notes.get(node.name, {}), number
        )
    return looks


def _kinds(topology: Topology, looks: dict[str, Look]) -> Drawing:
    """One detailed node of each kind, sound or not."""
    shown = []
    for hardware, nodes in nodes_alike(topology.nodes)[:KINDS_IN_DETAIL]:
        if 0 < len(hardware.devices) <= MAX_DETAIL:
            title = f"inside {name_range([node.name for node in nodes])}: {_inside_text(nodes[0])}"
            inner = detailed_node(hardware, looks[nodes[0].name])
            shown.append(framed(inner, title, "host", widest_title=WIDTH / 2))
    return below(shown, 12)


def _inside_text(node: Node) -> str:
    devices = node.hardware.devices
    return f"{devices_text(devices)}, {memory_text(devices)} each, {links_text(node.hardware)}"


def _cluster(topology: Topology, looks: dict[str, Look], small: bool) -> Drawing:
    if not small:
        inner = [
            framed(
                detailed_node(node.hardware, looks[node.name]),
                f"{node.name}: {_inside_text(node)}",
                "host",
                widest_title=WIDTH / 2,
            )
            for node in topology.nodes
        ]
        return below(inner, 12)
    fold = len(topology.nodes) > DRAWN_SMALL
    parts = list(_blocks(topology, looks, list(topology.nodes), len(topology.tiers), fold))
    return wrapped(_first(parts), WIDTH, 12)


def _blocks(
    topology: Topology, looks: dict[str, Look], nodes: list[Node], depth: int, fold: bool
) -> Iterator[Drawing]:
    """The frames of one fabric tier, the farthest first, then NVLink domains, then nodes."""
    if depth == 0:
        yield from _domains(looks, nodes, fold)
        return
    blocks: dict[str, list[Node]] = {}
    for node in nodes:
        blocks.setdefault(node.tiers[depth - 1], []).append(node)
    for value, members in blocks.items():
        inner = list(_blocks(topology, looks, members, depth - 1, fold))
        title = f"{topology.tiers[depth - 1]} {value}"
        yield framed(wrapped(_first(inner), WIDTH - 24 * depth, 10), title, "block")


def _domains(looks: dict[str, Look], nodes: Sequence[Node], fold: bool) -> Iterator[Drawing]:
    racks: dict[str, list[Node]] = {}
    for node in nodes:
        if node.domain is not None:
            racks.setdefault(node.domain, []).append(node)
    lone = [node for node in nodes if node.domain is None or len(racks[node.domain]) == 1]
    yield from _small_nodes(looks, lone, fold)
    racks = {name: members for name, members in racks.items() if len(members) > 1}
    same = groupby(racks, key=lambda name: _rack_look(racks[name], looks) if fold else name)
    for _, alike in same:
        names = list(alike)
        members = racks[names[0]]
        count = sum(len(node.hardware.devices) for node in members)
        each = " each" * (len(names) > 1)
        title = f"{count} GPUs{each}, NVLink domain {name_range(names)}"
        yield framed(_trays(looks, members, fold), title, "rack")


def _rack_look(members: Sequence[Node], looks: dict[str, Look]) -> tuple[tuple[int, str], ...]:
    return tuple((id(node.hardware), str(looks[node.name].faults)) for node in members)


def _trays(looks: dict[str, Look], nodes: Sequence[Node], fold: bool) -> Drawing:
    groups = _folded(looks, nodes, fold)
    widest = min(150.0, max(text_width(name, 10) for _, name in groups))
    trays = [tray(node.hardware, looks[node.name], name, widest) for node, name in groups]
    return below(_first(trays), 6)


def _small_nodes(looks: dict[str, Look], nodes: Sequence[Node], fold: bool) -> Iterator[Drawing]:
    for node, name in _folded(looks, nodes, fold):
        yield small_node(node.hardware, looks[node.name], name)


def _folded(looks: dict[str, Look], nodes: Sequence[Node], fold: bool) -> list[tuple[Node, str]]:
    """Nodes to draw and what to call them; equal neighbours are one."""

    def key(node: Node) -> object:
        return (id(node.hardware), looks[node.name].mesh) if fold else node.name

    groups = [list(alike) for _, alike in groupby(nodes, key=key)]
    return [(members[0], name_range([node.name for node in members])) for members in groups]


def _first(parts: list[Drawing]) -> list[Drawing]:
    """As many as one frame shows, then how many more there are."""
    if len(parts) <= MAX_PARTS:
        return parts
    text = f"and {len(parts) - MAX_PARTS:,} more, not drawn"
    more = Drawing(text_width(text, 12), 20, label(text, 0, 14, size=12, style="dim"))
    return [*parts[:MAX_PARTS], more]


def _legend(topology: Topology, looks: dict[str, Look]) -> Drawing:
    hardwares = {id(node.hardware): node.hardware for node in topology.nodes}.values()
    meshes = {number for look in looks.values() for number in look.mesh}
    entries = []
    if numbers := sorted({number % PALETTE for number in meshes if number is not None}):
        entries += [_sample("gpu", f"m{number}") for number in numbers[:3]]
        entries[-1:] = [
            _sample("gpu", f"m{numbers[min(2, len(numbers) - 1)]}", "full mesh of links")
        ]
    if any(hw.kind == "gpu" for hw in hardwares) and None in meshes:
        entries.append(_sample("gpu", "alone", "no NVLink known"))
    if any(look.faults for look in looks.values()):
        entries.append(_sample("gpu faulty", "alone", "fault"))
    rails = sorted(
        {nic.rail % PALETTE for hw in hardwares for nic in hw.nics if nic.rail is not None}
    )
    if rails:
        dots = "".join(
            f'<g class="key nic r{rail}"><circle cx="{6 + 12 * k}" cy="8" r="5"/></g>'
            for k, rail in enumerate(rails)
        )
        entries.append(_worded(Drawing(12 * len(rails), 16, dots), "NICs by rail"))
    if any(_has_arcs(hardware) for hardware in hardwares):
        entries.append(_worded(_line("legend-arc"), "linked pair, thicker with more links"))
    cables = {code for hw in hardwares for row in hw.nic_matrix for code in row}
    if "PIX" in cables:
        entries.append(_worded(_line("cable pix"), "one PCIe bridge (PIX)"))
    if "PXB" in cables:
        entries.append(_worded(_line("cable pxb"), "several PCIe bridges (PXB)"))
    return wrapped(entries, WIDTH, 18)


def _has_arcs(hardware: Hardware) -> bool:
    return any(
        len({code for j, code in enumerate(hardware.matrix[i]) if j in linked and j != i}) > 1
        for linked in hardware.nvlink_groups
        for i in linked
    )


def _sample(style: str, colour: str, words: str = "") -> Drawing:
    box = Drawing(16, 16, group(rectangle(0, 0, 16, 16, "body", 3), f"key {style} {colour}"))
    return _worded(box, words) if words else box


def _line(style: str) -> Drawing:
    return Drawing(28, 16, f'<path d="M0 8h28" class="{style}"/>')


def _worded(sign: Drawing, words: str) -> Drawing:
    text = label(escaped(words), 0, 12, size=11, style="dim")
    return beside([sign, Drawing(text_width(words, 11), 16, text)], 6)
