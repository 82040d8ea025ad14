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

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from parctl.errors import UsageError
from parctl.topology.model import Device, Hardware, Nic, Node, Topology
from parctl.topology.names import few
from parctl.topology.placement.order import in_natural_order
from parctl.topology.sources.capture import (
    UNKNOWN,
    Matrix,
    device_list,
    differing_ends,
    merge_devices,
    mirror,
    missing_facts,
    one_node,
    plain_lines,
    unknown_matrix,
)
from parctl.topology.sources.smi_affinity import (
    NOTHING,
    Affinity,
    like_others,
    numa_by_cpus,
    read_affinity,
    tell_places_apart,
)
from parctl.topology.sources.smi_columns import read_columns
from parctl.topology.sources.smi_list import (
    Listed,
    list_gpus,
    listed_facts,
    listed_links,
    listed_source,
    listed_warnings,
)
from parctl.topology.sources.smi_peers import fill_unknown, own_addresses
from parctl.topology.sources.smi_table import (
    CPU,
    NUMA,
    Row,
    Table,
    gpu_number,
    has_rows,
    is_gpu,
    is_p2p,
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
    nodes: list[Node] = []
    warnings: list[str] = []
    unknown: list[str] = []
    for reading in readings:
        hardware = reading.hardware
        if len(chosen) == 1:
            own = own_addresses(lines)
            facts = {index: {"pci": address} for index, address in own.items()}
            hardware = merge_devices(hardware, facts, "nvidia-smi")
            facts = {index: listed_facts(gpu) for index, gpu in listed.items()}
            hardware = merge_devices(hardware, facts, "nvidia-smi -L")
            hardware = _with_listed_links(hardware, listed, own)
            warnings += listed_warnings(list(listed.values()))
        of = f"{reading.table.host}: " if len(chosen) > 1 else ""
        dark = any(UNKNOWN in row for row in hardware.matrix)
        unknown += [of + text for text in reading.unknown() if dark or not _is_of_links(text)]
        unknown += missing_facts(hardware, of=of)
        warnings += [of + text for text in reading.warnings]
        node_name = reading.table.host
        nodes += one_node(hardware, name, source=SOURCE, node_name=node_name).nodes
    read = {id(table) for table in chosen.values()}
    spare = [table.line for table in tables if id(table) not in read]
    if spare:
        shown = few([str(line) for line in spare], 8)
        warnings.append(f"one table per machine is read, not those at lines {shown}")
    return Topology(
        name=name,
        source=f"{SOURCE} {name}",
        tiers=(),
        nodes=in_natural_order(nodes),
        warnings=tuple(dict.fromkeys(warnings)),
        unknown=tuple(unknown),
    )


def _with_listed_links(
    hardware: Hardware, listed: Mapping[int, Listed], own: Mapping[int, str]
) -> Hardware:
    """Fill links that the table does not show from where the NVLinks end, if the text says it."""
    matrix = [list(row) for row in hardware.matrix]
    gpus = [listed.get(device.index) for device in hardware.devices]
    if any(gpu is None for gpu in gpus):
        return hardware
    links = listed_links([gpu for gpu in gpus if gpu is not None], own)
    if not fill_unknown(matrix, links):
        return hardware
    source = f"{SOURCE}, {listed_source(list(listed.values()))}"
    sources = {**hardware.sources, "matrix": source}
    return replace(hardware, matrix=tuple(map(tuple, matrix)), sources=sources)


def _is_of_links(sentence: str) -> bool:
    return sentence in WHY_UNKNOWN.values()


class _Reading:
    """One table on its way to being a Hardware, with what was found wrong or missing."""

    def __init__(self, table: Table, name: str) -> None:
        self.table = table
        self.name = name
        self.warnings: list[str] = []
        self.columns = read_columns(table, name)
        self.gpus, self.nics = self.columns.gpus, self.columns.nics
        if not self.gpus:
            raise UsageError(
                f"{name}: the columns of the table name no GPU",
                hint="save the whole output of `nvidia-smi topo -m`",
            )
        self.labels = self.columns.labels
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
            yield f"rows of {few(lost_nics)}: not in the text"
        for row in self.cut:
            yield f"row of {row.label}: cut off at line {row.line}"
        if self.table.header is None:
            yield "names of the columns: the header is not in the text"
            if lost or self.cut:
                yield f"number of GPUs: at least {len(self.gpus)}, by the rows that are there"
        if self.columns.num_unnamed:
            yield f"names of {self.columns.num_unnamed} NICs"
        if self.columns.num_unknown:
            yield f"kind of {self.columns.num_unknown} columns, GPUs or NICs: no row tells"
        if self.table.kind == "matrix":
            yield "NVLink domains beyond this machine: `topo -m` does not show them"
        if self.nics:
            yield "speed and rail of the NICs"

    def _is_cut(self, row: Row) -> bool:
        """Whether the text ends inside this row."""
        if not row.at_end:
            return False
        if self.table.header is None or len(row.cells) < len(self.labels):
            return True
        if any(label not in self.table.rows for label in self.labels):
            return True
        return is_gpu(row.label) and len(row.words) < len(self.table.affinities)

    def _links(self) -> tuple[Matrix, Matrix]:
        num_gpus = len(self.gpus)
        matrix = unknown_matrix(len(self.labels))
        for position, label in enumerate(self.labels):
            row = self.table.rows.get(label)
            if row is not None:
                cells = self._believed(row, position)
                matrix[position][: len(cells)] = cells
                matrix[position][position] = "X"
        strangers = [label for label in self.table.rows if label not in self.labels]
        if strangers:
            self.warnings.append(f"rows of {few(strangers)}: no such column, not read")
        self.warnings += differing_ends(self.labels, matrix, mirror(matrix))
        nic_matrix = [row[num_gpus:] for row in matrix[:num_gpus]]
        between = [row[:num_gpus] for row in matrix[:num_gpus]]
        if self.table.kind != "matrix":
            between = unknown_matrix(num_gpus)
        return between, nic_matrix

    def _believed(self, row: Row, position: int) -> list[str]:
        """Return the cells of a row from the left, as far as they stand in their columns."""
        cells, words = list(row.cells), list(row.words)
        width = len(self.labels) + self.columns.num_unknown
        if row in self.cut and words:
            del words[-1:]  # `SY` was on its way to `SYS`
        elif not words and row.open_end and (row in self.cut or len(cells) < width):
            del cells[-1:]  # `NV1` may have been `NV18`
        misplaced = [i for i, code in enumerate(cells) if code == "X" and i != position]
        shifted = bool(misplaced) or (len(cells) > position and cells[position] != "X")
        if shifted or len(cells) > width:
            self.warnings.append(
                f"row of {row.label} (line {row.line}): cells are not below their columns, not read"
            )
            return []
        if words and len(cells) < width:
            self.warnings.append(
                f"row of {row.label} (line {row.line}): {len(cells)} cells for {width} columns, "
                "read up to its own"
            )
            cells = cells[: position + 1]
        return [UNKNOWN if is_p2p(code) else code for code in cells[: len(self.labels)]]

    def _affinities(self) -> list[Affinity]:
        rows = [self.table.rows.get(label) for label in self.gpus]
        columns = None if self.table.header is None else self.table.affinities
        found = [
            # a word that is no code, and so no cell, must not be taken for an affinity
            read_affinity(row, columns, cut=row in self.cut)
            if row is not None and len(row.cells) >= len(self.labels)
            else NOTHING
            for row in rows
        ]
        if columns == (CPU,) and rows[-1] is not None and rows[-1].at_end:
            found[-1] = like_others(found[-1], found[:-1])
        self.numa = [affinity.numa_node for affinity in found]
        blind = [i for i, affinity in enumerate(found) if affinity.is_blind]
        if blind and not tell_places_apart([affinity.numa for affinity in found]):
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
                    sources={"name": SOURCE} if label in self.table.columns else {},
                )
                for label in self.nics
            ),
            nic_matrix=tuple(map(tuple, self.nic_matrix)) if self.nics else (),
            num_cpus=None,
            memory_bytes=None,
            sources={"matrix": SOURCE, **({"nics": SOURCE} if self.nics else {})},
        )
