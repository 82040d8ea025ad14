"""`nvidia-smi topo -m`, pasted or saved: who is joined with whom inside one machine.

::

            GPU0    GPU1    NIC0    CPU Affinity    NUMA Affinity   GPU NUMA ID
    GPU0     X      NV18    PIX     0-55,112-167    0               N/A
    GPU1    NV18     X      NODE    0-55,112-167    0               N/A
    NIC0    PIX     NODE     X

`parctl.topology.sources.smi_table` finds the tables; here their rows become a link matrix. A row is
believed when its `X` stands in its own column: a lost cell shifts it. A link seen from one end is a
link, so rows that were cut are completed from the others, and what no row tells stays unknown.
`topo -mp` prints the PCIe path even where NVLink joins two GPUs, so it tells nothing about links
between GPUs; neither does `topo -p2p`.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from parctl.errors import UsageError
from parctl.topology.model import Device, Hardware, Nic, Topology
from parctl.topology.sources.capture import (
    MAX_DEVICES,
    UNKNOWN,
    Matrix,
    device_list,
    merge_devices,
    mirror,
    missing_facts,
    one_node,
    plain_lines,
    too_many,
    unknown_matrix,
)
from parctl.topology.sources.smi_affinity import NOTHING, Affinity, numa_by_cpus, read_affinity
from parctl.topology.sources.smi_list import list_gpus, listed_facts, listed_warnings
from parctl.topology.sources.smi_table import (
    NUMA,
    Row,
    Table,
    gpu_number,
    has_rows,
    is_gpu,
    read_tables,
)

SOURCE = "nvidia-smi topo"
WHY_UNKNOWN = {
    "pcie": "links between GPUs: `topo -mp` shows the PCIe path even where NVLink joins them",
    "p2p": "links between GPUs: `topo -p2p` says who may reach whom, not how",
}


def looks_like(text: str) -> bool:
    """Whether a row of a GPU link table stands in this text."""
    return any(has_rows(line.replace("|", " ")) for line in plain_lines(text))


def read_text(text: str, name: str) -> Topology:
    """Read the table of one machine, or of several whose lines begin with `host:`.

    Raises UsageError when there is no table.
    """
    lines = plain_lines(text)
    tables = read_tables(lines, name)
    if not tables:
        raise UsageError(
            f"{name}:1: no row such as `GPU0  X  NV18 ...` in {len(lines)} lines",
            hint="save the output of `nvidia-smi topo -m`",
        )
    kinds = ("matrix", "pcie", "p2p")
    chosen: dict[str | None, Table] = {}
    for table in sorted(tables, key=lambda table: kinds.index(table.kind)):
        chosen.setdefault(table.host, table)
    listed = list_gpus(lines, name)
    readings = [_Reading(table, name) for table in chosen.values()]
    nodes, warnings, unknown = [], [], []
    for reading in readings:
        hardware = reading.hardware
        if listed and len(chosen) == 1:
            facts = {index: listed_facts(gpu) for index, gpu in listed.items()}
            hardware = merge_devices(hardware, facts, "nvidia-smi -L")
            warnings += listed_warnings(list(listed.values()))
        of = f"{reading.table.host}: " if len(chosen) > 1 else ""
        unknown += [of + text for text in reading.unknown()]
        unknown += missing_facts(hardware, of=of)
        warnings += [of + text for text in reading.warnings]
        node_name = reading.table.host
        nodes += one_node(hardware, name, source=SOURCE, node_name=node_name).nodes
    spare = [table.line for table in tables if table not in chosen.values()]
    if spare:
        warnings.append(f"the tables at lines {_joined(spare)} are not read, one per machine is")
    return Topology(
        name=name,
        source=f"{SOURCE} {name}",
        tiers=(),
        nodes=tuple(nodes),
        warnings=tuple(dict.fromkeys(warnings)),
        unknown=tuple(unknown),
    )


class _Reading:
    """One table on its way to being a Hardware, with what was found wrong or missing."""

    def __init__(self, table: Table, name: str) -> None:
        self.table = table
        self.name = name
        self.warnings: list[str] = []
        self.gpus, self.nics, self.nics_named = self._labels()
        if len(self.gpus) + len(self.nics) > MAX_DEVICES:
            raise too_many(name, table.line, len(self.gpus) + len(self.nics))
        self.columns = [*self.gpus, *self.nics]
        self.cut = [row for row in table.rows.values() if self._is_cut(row)]
        self.matrix, self.nic_matrix = self._links()
        self.numa_source = SOURCE
        self.numa: Sequence[int | None] = ()
        self.affinities = self._affinities()
        self.hardware = self._hardware()

    def unknown(self) -> Iterator[str]:
        """What the table itself does not hold."""
        if self.table.kind in WHY_UNKNOWN:
            yield WHY_UNKNOWN[self.table.kind]
        lost = [gpu_number(label) for label in self.gpus if label not in self.table.rows]
        if lost:
            yield f"rows of {device_list(lost)}: not in the text"
        lost_nics = [label for label in self.nics if label not in self.table.rows]
        if lost_nics and self.table.header is not None and self.table.kind == "matrix":
            yield f"rows of {_joined(lost_nics)}: not in the text"
        for row in self.cut:
            yield f"row of {row.label}: cut off at line {row.line}"
        if self.table.header is None:
            yield "names of the columns: the header is not in the text"
            if lost or self.cut:
                yield f"number of GPUs: at least {len(self.gpus)}, by the rows that are there"
        if not self.nics_named:
            yield "names of the NICs"
        if self.table.kind == "matrix":
            yield "NVLink domain beyond this machine: `topo -m` does not show it"
        if self.nics:
            yield "speed and rail of the NICs"

    def _labels(self) -> tuple[list[str], list[str], bool]:
        """Labels of GPU and NIC columns, and whether all of those names were in the text."""
        table = self.table
        gpus = [label for label in table.columns if is_gpu(label)]
        nics = [label for label in table.columns if not is_gpu(label)]
        whole = [row for row in table.rows.values() if not self._touches_end(row)]
        widths = {len(row.cells) for row in whole if is_gpu(row.label)}
        width = max(widths, default=0)
        if table.header is None:
            gpus = self._gpus_without_header(max(map(len, (r.cells for r in table.rows.values()))))
            nics = [label for label in table.rows if not is_gpu(label)]
        named = True
        if len(widths) == 1 and width > len(gpus) + len(nics):
            taken = {*gpus, *nics}
            named = False
            extra = (f"NIC{i}" for i in range(2 * MAX_DEVICES))
            free = (label for label in extra if label not in taken)
            nics += [next(free) for _ in range(min(width - len(taken), MAX_DEVICES))]
        return gpus, nics, named

    def _gpus_without_header(self, width: int) -> list[str]:
        last = max(gpu_number(label) for label in self.table.rows if is_gpu(label))
        for row in self.table.rows.values():
            if is_gpu(row.label):
                nvlinks = [i for i, code in enumerate(row.cells) if code.startswith("NV")]
                last = max(last, *nvlinks, 0)
        if last + 1 > max(width, 1):
            raise UsageError(
                f"{self.name}:{self.table.line}: rows up to GPU{last}, but {width} columns and no "
                "header",
                hint="paste the output of `nvidia-smi topo -m` with its first line",
            )
        return [f"GPU{i}" for i in range(last + 1)]

    def _touches_end(self, row: Row) -> bool:
        return row.at_end

    def _is_cut(self, row: Row) -> bool:
        """Whether the text ends inside this row."""
        if not row.at_end:
            return False
        missing = [label for label in self.columns if label not in self.table.rows]
        return bool(missing) or len(row.cells) < len(self.columns)

    def _links(self) -> tuple[Matrix, Matrix]:
        num_gpus = len(self.gpus)
        matrix = unknown_matrix(len(self.columns))
        for position, label in enumerate(self.columns):
            row = self.table.rows.get(label)
            if row is not None:
                cells = self._believed(row, position)
                matrix[position][: len(cells)] = cells
                matrix[position][position] = "X"
        strangers = [label for label in self.table.rows if label not in self.columns]
        if strangers:
            self.warnings.append(f"rows of {_joined(strangers)}: no such column, not read")
        for i, j in mirror(matrix):
            a, b = self.columns[i], self.columns[j]
            self.warnings.append(
                f"{a} and {b} disagree about their link: {matrix[i][j]} and {matrix[j][i]}"
            )
        nic_matrix = [row[num_gpus:] for row in matrix[:num_gpus]]
        between = [row[:num_gpus] for row in matrix[:num_gpus]]
        if self.table.kind != "matrix":
            between = unknown_matrix(num_gpus)
        return between, nic_matrix

    def _believed(self, row: Row, position: int) -> list[str]:
        """Return the cells of a row from the left, as far as they stand in their columns."""
        cells = list(row.cells)
        if not row.words and row.open_end and (row in self.cut or len(cells) < len(self.columns)):
            del cells[-1:]  # `NV1` may have been `NV18`
        misplaced = [i for i, code in enumerate(cells) if code == "X" and i != position]
        shifted = bool(misplaced) or (len(cells) > position and cells[position] != "X")
        if shifted or len(cells) > len(self.columns):
            self.warnings.append(
                f"row of {row.label} (line {row.line}): cells are not below their columns, not read"
            )
            return []
        if row.words and len(cells) < len(self.columns):
            self.warnings.append(
                f"row of {row.label} (line {row.line}): {len(cells)} cells for "
                f"{len(self.columns)} columns, read up to its own"
            )
            return cells[: position + 1]
        return [code if code in "X" or self._is_link(code) else UNKNOWN for code in cells]

    def _is_link(self, code: str) -> bool:
        return code not in ("OK", "CNS", "GNS", "TNS", "NS", "DR", "U")

    def _affinities(self) -> list[Affinity]:
        rows = [self.table.rows.get(label) for label in self.gpus]
        columns = None if self.table.header is None else self.table.affinities
        found = [
            NOTHING if row is None else read_affinity(row, columns, cut=row in self.cut)
            for row in rows
        ]
        self.numa = [affinity.numa_node for affinity in found]
        blind = [i for i, affinity in enumerate(found) if affinity.is_blind]
        if blind:
            self.warnings.append(
                f"NUMA affinity of {device_list([gpu_number(self.gpus[i]) for i in blind])} is a "
                f"range ({found[blind[0]].numa}), seen from a container or cgroup; "
                "its first node is taken"
            )
        has_column = any(row is not None and len(row.fields) > 1 for row in rows)
        if NUMA not in (columns or ()) and not has_column:
            by_cpus = numa_by_cpus(found)
            if by_cpus is not None and found:
                self.numa = by_cpus
                self.numa_source = f"{SOURCE}, CPU affinity"
        return found

    def _hardware(self) -> Hardware:
        devices = []
        for label, affinity, numa in zip(self.gpus, self.affinities, self.numa, strict=True):
            facts: dict[str, Any] = {"numa": numa, "cpu_affinity": affinity.cpus}
            sources = {"numa": self.numa_source, "cpu_affinity": SOURCE}
            devices.append(
                Device(
                    index=gpu_number(label),
                    product=None,
                    uuid=None,
                    memory_bytes=None,
                    pci=None,
                    sources={key: sources[key] for key in facts if facts[key] is not None},
                    **facts,
                )
            )
        return Hardware(
            kind="gpu",
            devices=tuple(devices),
            matrix=tuple(map(tuple, self.matrix)),
            nics=tuple(
                Nic(
                    name=self.table.nic_names.get(label, label),
                    speed_gbit_s=None,
                    numa=None,
                    pci=None,
                    rail=None,
                    sources={"name": SOURCE} if self.nics_named else {},
                )
                for label in self.nics
            ),
            nic_matrix=tuple(map(tuple, self.nic_matrix)) if self.nics else (),
            num_cpus=None,
            memory_bytes=None,
            sources={"matrix": SOURCE, **({"nics": SOURCE} if self.nics else {})},
        )


def _joined(values: Sequence[object], most: int = 8) -> str:
    shown = ", ".join(str(value) for value in values[:most])
    return f"{shown} and {len(values) - most} more" if len(values) > most else shown


def is_whole(topology: Topology) -> bool:
    """Whether nothing of the table was cut off."""
    return not any(re.search(r"not in the text|cut off", text) for text in topology.unknown)
