"""CPU and NUMA affinity of the GPUs of an `nvidia-smi topo -m` table.

Which of the columns an affinity cell belongs to is the one thing that cannot be seen from the cell:
`0` is a CPU or a NUMA node. Cells are told apart by their position where the text kept it, by their
number where it did not; what remains in doubt stays unknown.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from parctl.topology.sources.smi_table import CPU, GPU_NUMA, NUMA, Row

_LIST = re.compile(r"\d{1,5}(?:-\d{1,5})?(?:,\d{1,5}(?:-\d{1,5})?)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Affinity:
    """What a row says: lists as the driver prints them, None where it says nothing."""

    cpus: str | None
    numa: str | None

    @property
    def numa_node(self) -> int | None:
        """The NUMA node; of a range, which names no one node, the lowest."""
        return None if self.numa is None else int(re.split("[-,]", self.numa)[0])

    @property
    def is_blind(self) -> bool:
        return self.numa is not None and not self.numa.isdecimal()


NOTHING = Affinity(cpus=None, numa=None)


def read_affinity(row: Row, columns: Sequence[str] | None, *, cut: bool) -> Affinity:
    """Read a row's affinities. `columns` are those of the header, None where there is none.

    `cut`: the last cell of the row is not to be trusted.
    """
    cells = _cells(row, columns)
    if cut and row.words:
        last = row.words[-1]  # of `0-47` a `0-4` may be left
        for column in (NUMA, CPU):
            if cells.get(column) == last:
                del cells[column]
                break
    return Affinity(cpus=_list(cells.get(CPU)), numa=_list(cells.get(NUMA)))


def _cells(row: Row, columns: Sequence[str] | None) -> dict[str, str]:
    words, fields = row.words, row.fields
    if columns is None:
        columns = (CPU, NUMA, GPU_NUMA)[: len(words)]
    if len(words) == len(columns):
        return dict(zip(columns, words, strict=True))
    if fields is not words:
        found = dict(zip((CPU, NUMA), fields, strict=False))
        return {column: cell for column, cell in found.items() if column in columns}
    rest = words[:-1] if GPU_NUMA in columns and words and words[-1] == "N/A" else words
    if len(rest) == 2 or (len(rest) == 1 and NUMA not in columns):
        return dict(zip(columns, rest, strict=False))
    if len(rest) == 1 and re.search("[-,]", rest[0]):
        return {CPU: rest[0]}
    return {}


def _list(cell: str | None) -> str | None:
    if cell is None or not _LIST.fullmatch(cell):
        return None
    ranges = [part.split("-") for part in cell.split(",")]
    return cell if all(int(first[0]) <= int(first[-1]) for first in ranges) else None


def like_others(last: Affinity, others: Sequence[Affinity]) -> Affinity:
    """Return the last affinity of a text, or nothing when it may be cut: `6-1` of `6-11`.

    Sockets are alike, so a list is believed that has as many CPUs as another.
    """
    if last.cpus is None:
        return last
    sizes = {len(set(_cpus(other.cpus))) for other in others if other.cpus is not None}
    return last if len(set(_cpus(last.cpus))) in sizes else NOTHING


def tell_places_apart(lists: Sequence[str | None]) -> bool:
    """Whether NUMA lists differ and share no node: `0,2-17` and `1,18-33` on a Grace machine, whose
    GPUs have memory nodes of their own."""
    distinct = {text for text in lists if text is not None}
    nodes = [set(_cpus(text)) for text in distinct]
    return len(nodes) > 1 and sum(map(len, nodes)) == len(set().union(*nodes))


def numa_by_cpus(affinities: Sequence[Affinity]) -> list[int] | None:
    """Number the groups of devices with equal CPU affinity, lowest CPU first.

    For tables of old drivers, which have no NUMA column. None when the lists overlap or are
    missing: then they do not tell the sockets apart.
    """
    lists = [affinity.cpus for affinity in affinities]
    sets = {text: set(_cpus(text)) for text in lists if text is not None}
    if None in lists or sum(map(len, sets.values())) > len(set().union(*sets.values())):
        return None
    order = sorted(sets, key=lambda text: min(sets[text]))
    return [order.index(text) for text in lists if text is not None]


def _cpus(text: str) -> Iterator[int]:
    for part in text.split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)
