"""`rocm-smi --showtopo` and `amd-smi topology`: how the AMD GPUs of one machine are joined.

Tables between GPUs of weight, hops and link type, then the NUMA node of each GPU::

    ====== Weight between two GPUs ======          WEIGHT TABLE:
           GPU0   GPU1   GPU2                                   0000:0c:00.0   0000:22:00.0
    GPU0   0      15     30                        0000:0c:00.0 0              15
    GPU1   15     0      15

The weight decides. The driver counts 15 per xGMI hop, while `hops` says 1 and the type says XGMI
even where a GPU stands between: only weight 15 is a link of its own. A longer way over xGMI, like
every PCIe way, is written as the path through the host: `NODE` within a NUMA node, `SYS` beyond.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from parctl.errors import UsageError
from parctl.topology.model import Device, Hardware, Topology
from parctl.topology.sources.capture import (
    MAX_DEVICES,
    UNKNOWN,
    Matrix,
    differing_ends,
    mirror,
    missing_facts,
    one_node,
    plain_lines,
    product_of,
    too_many,
    unknown_matrix,
)
from parctl.topology.sources.pci import pci_address

XGMI_HOP = 15  # weight of one xGMI link in the driver's topology
TITLES = {
    "weight": re.compile(r"weight(?: between two gpus| table)", re.IGNORECASE),
    "hops": re.compile(r"hops(?: between two gpus| table)", re.IGNORECASE),
    "type": re.compile(r"link type(?: between two gpus| table)", re.IGNORECASE),
}
_BDF = r"[0-9a-fA-F]{4}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]"
_LABEL = re.compile(rf"GPU(?:0|[1-9][0-9]{{0,3}})|{_BDF}")
_FACT = re.compile(
    r"\bGPU ?\[?(\d{1,4})\]?\s*: (?:\((?:Topology|\w+)\) )?([A-Za-z][\w ]{1,30}?):\s*(.*)"
)
_ANY_TITLE = re.compile(r"={3}[^=]{2,80}={3}|^[A-Z0-9 -]{3,40} TABLE:")
_SIGNS = re.compile(
    r"ROCm System Management Interface|between two GPUs|\(Topology\) Numa|(?m:^LINK TYPE TABLE:)"
)

Table = dict[tuple[str, str], str]


def looks_like(text: str) -> bool:
    """Whether rocm-smi or amd-smi printed this text."""
    return _SIGNS.search(text) is not None


def read_text(text: str, name: str) -> Topology:
    """Read the GPUs of one machine. Raises UsageError when the text names none."""
    lines = plain_lines(text)
    tables, facts, cut = _read(lines, name)
    labels = _labels(tables, facts)
    if not labels:
        raise UsageError(
            f"{name}:1: no GPU in {len(lines)} lines",
            hint="save the output of `rocm-smi --showtopo`",
        )
    if len(labels) > MAX_DEVICES:
        raise too_many(name, 1, len(labels))
    source = "amd-smi" if re.search(r"(?m)^LINK TYPE TABLE:", text) else "rocm-smi"
    by_label = [facts.get(label, {}) for label in labels]
    numa = [_number(known.get("numa node", "")) for known in by_label]
    matrix = unknown_matrix(len(labels))
    for i, a in enumerate(labels):
        for j, b in enumerate(labels):
            if i != j:
                matrix[i][j] = _code(tables, a, b, numa[i], numa[j])
    warnings = differing_ends(labels, matrix, mirror(matrix))
    hardware = _hardware(labels, by_label, numa, matrix, source)
    unknown = [
        *cut,
        *missing_facts(hardware),
        *_missing_tables(tables, numa),
        f"NICs: {source} lists none",
    ]
    return one_node(hardware, name, source=source, warnings=warnings, unknown=unknown)


def _read(
    lines: Sequence[str], name: str
) -> tuple[dict[str, Table], dict[str, dict[str, str]], list[str]]:
    """Tables by kind, facts by label, and which tables are not whole, in words."""
    tables: dict[str, Table] = {}
    facts: dict[str, dict[str, str]] = {}
    kind: str | None = None
    columns: list[str] = []
    sizes: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if fact := _FACT.search(line):
            facts.setdefault(f"GPU{int(fact[1])}", {}).setdefault(
                fact[2].strip().lower(), fact[3].strip()
            )
            continue
        titles = [key for key, title in TITLES.items() if title.search(line)]
        if titles or _ANY_TITLE.search(line):
            kind, columns = (titles[0] if titles else None), []
            continue
        words = [word.lower() if ":" in word else word for word in line.split()]
        if kind is None or not words or not _LABEL.fullmatch(words[0]):
            continue
        if all(_LABEL.fullmatch(word) for word in words) and (not columns or len(words) > 1):
            columns = words
            sizes.setdefault(kind, len(columns) ** 2)
            if len(columns) > MAX_DEVICES:
                raise too_many(name, number, len(columns))
        elif columns:
            cells = words[1 : len(columns) + 1]
            short = len(cells) < len(columns) or words[0] != columns[-1]
            if short and number == len(lines) and not line[-1].isspace():
                cells = cells[:-1]  # `1` may have been `15`
            table = tables.setdefault(kind, {})
            for column, cell in zip(columns, cells, strict=False):
                table.setdefault((words[0], column), cell)
    cut = [
        f"{size - len(tables.get(kind, {}))} of {size} cells of the {kind} table: not in the text"
        for kind, size in sizes.items()
        if len(tables.get(kind, {})) < size
    ]
    return tables, facts, cut


def _labels(tables: dict[str, Table], facts: dict[str, dict[str, str]]) -> list[str]:
    """Labels of the devices in order; addresses where the tables have them, numbers else."""
    found = {label for table in tables.values() for pair in table for label in pair}
    addresses = sorted(label for label in found if ":" in label)
    return addresses or sorted({*found, *facts}, key=lambda label: int(label[3:]))


def _code(tables: dict[str, Table], a: str, b: str, numa_a: int | None, numa_b: int | None) -> str:
    link = tables.get("type", {}).get((a, b), "").upper()
    weight = _number(tables.get("weight", {}).get((a, b), ""))
    hops = _number(tables.get("hops", {}).get((a, b), ""))
    if link in ("", "XGMI") and weight == XGMI_HOP:
        return "XGMI"
    if link == "XGMI" and weight is None:
        return "XGMI" if hops in (None, 1) else _host_path(hops, numa_a, numa_b)
    if link in ("XGMI", "PCIE"):
        return _host_path(hops if link == "PCIE" else None, numa_a, numa_b)
    return UNKNOWN


def _host_path(hops: int | None, numa_a: int | None, numa_b: int | None) -> str:
    """GPU, host, GPU are two hops; a third is the link between sockets."""
    if numa_a is not None and numa_b is not None:
        return "NODE" if numa_a == numa_b else "SYS"
    return "NODE" if hops == 2 else "SYS"


def _hardware(
    labels: Sequence[str],
    facts: Sequence[dict[str, str]],
    numa: Sequence[int | None],
    matrix: Matrix,
    source: str,
) -> Hardware:
    devices = []
    for position, (label, known) in enumerate(zip(labels, facts, strict=True)):
        series = known.get("card series") or known.get("card model") or known.get("device name")
        told: dict[str, Any] = {
            "product": product_of(series[:80]) if series and series != "N/A" else None,
            "uuid": known.get("unique id") or None,
            "pci": label if ":" in label else pci_address(known.get("pci bus")),
            "numa": numa[position],
        }
        devices.append(
            Device(
                index=position if ":" in label else int(label[3:]),
                memory_bytes=None,
                sources={key: source for key, value in told.items() if value is not None},
                **told,
            )
        )
    return Hardware(
        kind="gpu",
        devices=tuple(devices),
        matrix=tuple(map(tuple, matrix)),
        nics=(),
        nic_matrix=(),
        num_cpus=None,
        memory_bytes=None,
        sources={"matrix": source},
    )


def _missing_tables(tables: dict[str, Table], numa: Sequence[int | None]) -> Iterator[str]:
    types = {cell.upper() for cell in tables.get("type", {}).values()}
    if "XGMI" in types and "weight" not in tables:
        yield "weights: without them a link over xGMI may have another GPU on the way"
    if "PCIE" in types and "hops" not in tables and None in numa:
        yield "PCIe distances: neither hops nor NUMA nodes are told, the farthest (SYS) is taken"


def _number(word: str) -> int | None:
    return int(word) if word.isdecimal() and len(word) < 6 else None
