"""The tables of `nvidia-smi topo` as text, whatever became of them on the way.

The one idea: a row is a label, a run of link codes, and a tail. Codes are recognised by what they
are, not by where they stand, so tabs, any column width, joined cells (`NODEPIX`) and rows without a
header all read alike. The tail holds the affinities, where an empty cell counts: its fields come
from the tabs, or from the 8-column stops that tabs were expanded to, or from the number of words.

A row remembers whether its last word may be cut: nothing that touches the end of a cut text is
trusted, since `NV1` may have been `NV18`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from parctl.errors import UsageError
from parctl.topology.sources.capture import MAX_DEVICES, too_many

TAB = 8
MAX_WRAPPED = 8192  # characters of a header or row that is put together from several lines
CPU, NUMA, GPU_NUMA = "cpu", "numa", "gpu_numa"
Kind = Literal["matrix", "pcie", "p2p"]

_LINK = r"NV\d{1,3}|PIX|PXB|PHB|NODE|SYS|SOC|X"
_P2P = r"OK|CNS|GNS|TNS|NS|DR|U"
_CODES = re.compile(rf"(?:{_LINK})+|{_P2P}")
_CODE = re.compile(rf"{_LINK}|{_P2P}")
_JOINED_TAIL = re.compile(r"((?:PIX|PXB|PHB|NODE|SYS|SOC|X)+)(\d[\d,-]*)")
_LABEL = r"[A-Za-z][\w.-]{0,40}[0-9]"
_ROW = re.compile(rf"(?<!\S)({_LABEL})[ \t]+(?=(?:{_LINK}|{_P2P})(?:\s|$|{_LINK}))")
_GPU = re.compile(r"GPU(0|[1-9][0-9]{0,3})(?![0-9])")
_COLUMN = re.compile(rf"GPU\d{{1,4}}|NIC\d{{1,4}}|mlx\d_(?:bond_)?\d{{1,3}}|{_LABEL}")
_COLUMNS = re.compile(rf"(?:GPU\d{{1,4}}|NIC\d{{1,4}}|mlx\d_(?:bond_)?\d{{1,3}})+|{_LABEL}")
_AFFINITIES = re.compile(r"(?<=[\w\s])(?:CPU|NUMA)\b|GPU[ \t]+NUMA")
_NOISE = re.compile(r".*[:>\])|#]|[>|#*\s-]*|\d[\d:TZ.+-]*")
_HOST = re.compile(r"([A-Za-z0-9][\w.-]{0,80}):(?=\s|$)")
_NIC_LEGEND = re.compile(r"(NIC\d{1,4}):\s*([\w.-]+)")
_COMMAND = re.compile(r"topo\s+(-\S+|--[\w-]+)")
_HEADER_WORD = re.compile(rf"{_LABEL}|[A-Za-z]{{1,9}}|[0-9]{{1,2}}")
_ROW_WORD = re.compile(r"[A-Z]{1,4}[0-9]{0,2}|[A-Z0-9]{1,24}|[0-9,-]+|N?/?A")
_COMMENT = re.compile(r"\s(?:#|//|<)")


@dataclass(slots=True, kw_only=True)
class Row:
    label: str
    line: int  # counts from 1
    text: str  # from the label on; wrapped lines joined
    at_end: bool  # the text ends here, right after a word
    cells: list[str]
    fields: list[str]  # affinity cells by position, empty ones included
    words: list[str]  # the same without empty ones
    open_end: bool  # no blank after the last word of the line


@dataclass(slots=True, kw_only=True)
class Table:
    host: str | None  # from a `host:` in front of each line
    line: int
    header: str | None
    command: str | None  # option of `nvidia-smi topo`, where the command was copied too
    columns: list[str] = field(default_factory=list)  # labels of the header
    affinities: tuple[str, ...] = ()  # columns after them
    rows: dict[str, Row] = field(default_factory=dict)
    nic_names: dict[str, str] = field(default_factory=dict)  # the NIC legend

    @property
    def kind(self) -> Kind:
        codes = {code for row in self.rows.values() for code in row.cells if code != "X"}
        if codes and all(map(is_p2p, codes)):
            return "p2p"
        if self.command is not None and self.command.startswith(("-mp", "--matrix_pci")):
            return "pcie"
        return "matrix"


def is_gpu(label: str) -> bool:
    return _GPU.fullmatch(label) is not None


def is_p2p(code: str) -> bool:
    """Whether a cell says what `topo -p2p` says: that peers may or may not reach each other."""
    return re.fullmatch(_P2P, code) is not None


def gpu_number(label: str) -> int:
    return int(label[3:])


def has_rows(line: str) -> bool:
    """Whether a row of a GPU stands in this line."""
    match = _ROW.search(line)
    return match is not None and is_gpu(match[1])


def read_tables(lines: Sequence[str], name: str) -> list[Table]:
    """Find every table in a capture, in the order of their first lines."""
    tables: list[Table] = []
    current: dict[str | None, Table] = {}  # by host
    command: str | None = None
    host: str | None = None
    header: Table | None = None  # of the line before, which this one may continue
    row: Row | None = None  # likewise
    for number, raw in enumerate(lines, 1):
        line = raw.replace("|", " ") if "|" in raw else raw
        at_end = number == len(lines) and not line[-1:].isspace()
        if match := _ROW.search(line):
            host = _host(line[: match.start()])
            table = current.get(host)
            if table is None or match[1] in table.rows:
                table = current[host] = Table(host=host, line=number, header=None, command=command)
                tables.append(table)
            row = table.rows[match[1]] = _row(match[1], number, line[match.start() :], at_end)
            header = None
        elif found := _header(line):
            if (
                header is not None
                and not found[1].startswith("GPU0")
                and _goes_on(header, found[1])
            ):
                _set_header(header, (header.header or "") + found[1], name, number)
                continue
            host = found[0]
            header = current[host] = Table(host=host, line=number, header=None, command=command)
            _set_header(header, found[1], name, number)
            tables.append(header)
            row = None
        elif header is not None and _goes_on(header, line):
            _set_header(header, (header.header or "") + line, name, number)
        elif row is not None and _continues(row, line, current[host]):
            row = _row(row.label, row.line, row.text + line, at_end)
            current[host].rows[row.label] = row
        else:
            header = row = None
            if named := _COMMAND.search(line):
                command = named[1]
            _read_legend(line, current)
    return [table for table in tables if any(is_gpu(label) for label in table.rows)]


def _read_legend(line: str, tables: dict[str | None, Table]) -> None:
    """Read `NIC0: mlx5_0`, for the table of its host."""
    prefix = _HOST.match(line)
    host = None
    if prefix is not None and re.fullmatch(r"NIC\d{1,4}", prefix[1]) is None:
        host, line = prefix[1], line[prefix.end() :]
    legend = _NIC_LEGEND.fullmatch(line.strip())
    if legend is not None and host in tables:
        tables[host].nic_names.setdefault(legend[1], legend[2])


def _host(prefix: str) -> str | None:
    match = _HOST.fullmatch(prefix.strip())
    return match[1] if match else None


def _only(word: re.Pattern[str], line: str) -> bool:
    return all(word.fullmatch(part) for part in line.split())


def _header(line: str) -> tuple[str | None, str] | None:
    """(host, text from the first label on) when the line can be a header."""
    match = _GPU.search(line)
    if match is None or not _NOISE.fullmatch(line[: match.start()].strip()):
        return None
    text = line[match.start() :]
    labels, affinities = _split_header(text)
    for word in labels.split():
        if not _COLUMNS.fullmatch(word):
            return None
    if len(labels.split()) == 1 and not affinities and line[: match.start()].strip():
        return None  # `see GPU0:` is no header
    return _host(line[: match.start()]), text


def _split_header(text: str) -> tuple[str, str]:
    match = _AFFINITIES.search(text)
    return (text[: match.start()], text[match.start() :]) if match else (text, "")


def _set_header(table: Table, text: str, name: str, line: int) -> None:
    labels, affinities = _split_header(text)
    columns = [
        column
        for word in labels.split()
        for column in (_COLUMN.findall(word) if _COLUMNS.fullmatch(word) else ())
    ]
    if len(columns) > MAX_DEVICES:
        raise too_many(name, line, len(columns))
    if len(set(columns)) < len(columns):
        twice = next(column for column in columns if columns.count(column) > 1)
        raise UsageError(
            f"{name}:{line}: the header names {twice} twice",
            hint="paste the output of `nvidia-smi topo -m` as it was printed",
        )
    table.header = text
    table.columns = columns
    table.affinities = tuple(_affinity_columns(affinities))


def _affinity_columns(text: str) -> Iterator[str]:
    if "CPU" in text:
        yield CPU
    if re.search(r"\bNUMA\b", re.sub(r"GPU\s+NUMA", "", text)):
        yield NUMA
    if re.search(r"GPU\s+NUMA", text):
        yield GPU_NUMA


def _goes_on(table: Table, line: str) -> bool:
    """Whether a line is the rest of a header that a terminal broke."""
    if not line.strip() or len(table.header or "") + len(line) > MAX_WRAPPED:
        return False
    return _only(_HEADER_WORD, line)


def _continues(row: Row, line: str, table: Table) -> bool:
    """Whether a line is the rest of a row that a terminal broke: it has what the row lacks."""
    first = line.split()[0] if line.strip() else ""
    if not first or first in table.columns or _GPU.match(first) or not _only(_ROW_WORD, line):
        return False
    if len(row.text) + len(line) > MAX_WRAPPED:
        return False
    if len(row.cells) < len(table.columns):
        return True
    return is_gpu(row.label) and len(row.words) < len(table.affinities)


def _row(label: str, line: int, text: str, at_end: bool) -> Row:
    cells: list[str] = []
    position = len(label)
    tail_words: list[str] = []
    comment = _COMMENT.search(text)
    content = text[: comment.start()] if comment else text
    for match in re.finditer(r"\S+", content[position:]):
        word = match[0]
        if _CODES.fullmatch(word):
            cells += _CODE.findall(word)
        elif joined := _JOINED_TAIL.fullmatch(word):
            cells += _CODE.findall(joined[1])
            tail_words = [joined[2]]
            position = len(label) + match.end()
            break
        else:
            break
        position = len(label) + match.end()
    tail = content[position:]
    words = tail_words + tail.split()
    fields = words if tail_words else _fields(content, position, words)
    return Row(
        label=label,
        line=line,
        text=text,
        at_end=at_end,
        cells=[{"SOC": "SYS"}.get(cell, cell) for cell in cells],
        fields=fields,
        words=words,
        open_end=not text[-1:].isspace(),
    )


def _fields(text: str, start: int, words: list[str]) -> list[str]:
    """Affinity cells after the codes that end at `start`, with the empty ones between them."""
    tail = text[start:]
    if "\t" in tail:
        fields = [cell.strip() for cell in tail.split("\t")[1:]]
        return fields if sum(map(bool, fields)) == len(words) else words
    fields, end = [], start
    for match in re.finditer(r"\S+", tail):
        column = start + match.start()
        tabs = column // TAB - end // TAB
        if column % TAB or not tabs:
            return words
        fields += [""] * (tabs - 1) + [match[0]]
        end = start + match.end()
    return fields
