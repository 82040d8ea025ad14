"""The cluster as one HTML page: the picture, what TP sizes it allows, what is wrong, every fact.

The page needs nothing else: no script, no font, no address. It can be mailed or kept with a run.
"""

from collections.abc import Iterable, Iterator, Sequence

from parctl.topology.check.questions import Check, check_topology
from parctl.topology.describe import (
    hardware_cells,
    headline,
    name_range,
    nodes_alike,
)
from parctl.topology.model import Hardware, Topology
from parctl.topology.picture.drawing import escaped
from parctl.topology.picture.svg import topology_to_svg

MAX_MATRIX = 16  # devices of the largest link matrix shown
MAX_LINES = 200  # of findings, warnings or unknown facts

STYLE = """
:root{color-scheme:light}
body{font:15px/1.5 ui-sans-serif,system-ui,"DejaVu Sans",Arial,sans-serif;color:#1f2933;
background:#fff;max-width:1300px;margin:0 auto;padding:16px 24px}
h2{font-size:18px;margin:28px 0 8px}
svg{max-width:100%;height:auto}
.scroll{overflow-x:auto}
table{border-collapse:collapse}
th,td{text-align:left;padding:4px 14px 4px 0;border-bottom:1px solid #d9e2ec;vertical-align:top}
th{font-weight:600;color:#52606d}
.matrix td,.matrix th{font-family:ui-monospace,"DejaVu Sans Mono",monospace;font-size:12px;
padding:2px 8px;text-align:center}
.matrix tr:hover td{background:#eef2f6}
.yes{color:#00663d;font-weight:600}.no,.unknown{color:#52606d}
.fault{color:#b00020;font-weight:600}
"""


def topology_to_html(topology: Topology) -> str:
    """Write the page. Equal topologies give equal text."""
    check = check_topology(topology)
    picture = topology_to_svg(topology)
    parts = [
        f'<section class="scroll">{picture}</section>',
        *_tensor_parallel(check),
        *_findings(check),
        *_kinds(topology),
        *_list("Warnings", topology.warnings),
        *_list("Unknown", topology.unknown),
    ]
    title = escaped(headline(topology))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _tensor_parallel(check: Check) -> Iterator[str]:
    if not check.tp:
        return
    yield "<h2>Can TP=N stay on full NVLink?</h2>"
    rows = [
        (
            f"{answer.size}",
            f'<span class="{answer.answer}">{answer.answer}</span>',
            f"{answer.num_groups:,}" if answer.places else "",
            escaped(answer.explanation),
        )
        for answer in check.tp
    ]
    yield _table(("N", "answer", "groups", "where, or why not"), rows)


def _findings(check: Check) -> Iterator[str]:
    yield "<h2>Findings</h2>"
    if not check.findings:
        yield "<p>Nothing is wrong or odd, as far as is known.</p>"
        return
    lines = [
        f"<span class='fault'>fault</span> {escaped(str(finding))}"
        if finding.fault
        else escaped(str(finding))
        for finding in check.findings
    ]
    yield _items(lines)


def _kinds(topology: Topology) -> Iterator[str]:
    yield "<h2>Nodes</h2>"
    kinds = nodes_alike(topology.nodes)
    rows = [
        tuple(
            escaped(text)
            for text in (
                name_range([node.name for node in nodes]),
                *hardware_cells(hardware),
            )
        )
        for hardware, nodes in kinds[:MAX_LINES]
    ]
    yield _table(("nodes", "devices", "memory", "links", "NUMA", "NICs", "sources"), rows)
    for hardware, nodes in kinds[:8]:
        if 1 < len(hardware.devices) <= MAX_MATRIX and hardware.kind == "gpu":
            yield f"<h2>Links inside {escaped(name_range([node.name for node in nodes]))}</h2>"
            yield _matrix(hardware)


def _matrix(hardware: Hardware) -> str:
    head = [f"GPU{device.index}" for device in hardware.devices]
    nics = [nic.name for nic in hardware.nics] if hardware.nic_matrix else []
    rows = [
        (name, *row, *(hardware.nic_matrix[i] if nics else ()))
        for i, (name, row) in enumerate(zip(head, hardware.matrix, strict=True))
    ]
    cells = [tuple(escaped(cell) for cell in row) for row in rows]
    return _table(("", *map(escaped, (*head, *nics))), cells, style="matrix")


def _list(title: str, lines: Sequence[str]) -> Iterator[str]:
    if lines:
        yield f"<h2>{title}</h2>"
        yield _items([escaped(line) for line in lines])


def _items(lines: Sequence[str]) -> str:
    shown = [f"<li>{line}</li>" for line in lines[:MAX_LINES]]
    if len(lines) > MAX_LINES:
        shown.append(f"<li>and {len(lines) - MAX_LINES:,} more</li>")
    return f"<ul>{''.join(shown)}</ul>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], style: str = "") -> str:
    """Cells have been escaped already."""
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>\n" for row in rows)
    titles = "".join(f"<th>{cell}</th>" for cell in head)
    return (
        f'<div class="scroll"><table class="{style}">'
        f"<thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>"
    )
