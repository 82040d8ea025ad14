"""A capture: text that a tool printed and a person copied, mailed, pasted or cut.

What all readers of captures share. `plain_lines` undoes what terminals, web pages and logs do to
text; `mirror` completes a link matrix of which rows are missing (a link seen from one end is a
link); `one_node` wraps what was read about one machine; `missing_facts` puts into words what was
not there.
"""

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from parctl.errors import UsageError
from parctl.topology.model import Hardware, Node, Topology
from parctl.topology.products import find_product

MAX_DEVICES = 1024  # of one node; a text that names more is no capture
UNKNOWN = "?"
FEW = 3  # complaints of one kind that are told one by one

_ESCAPE = re.compile(r"\x1b\[[0-9;?]{0,32}[@-~]|\x1b\][^\x07\n]{0,200}\x07|[\x00\x07\x08\ufeff]")
_BREAK = re.compile(r"<br\s*/?>|\r\n?", re.IGNORECASE)
_TAG = re.compile(r"</?(?:pre|code|p|td|tr|table|span|div)\b[^<>]{0,200}>", re.IGNORECASE)
_ENTITY = re.compile(r"&(?:nbsp|lt|gt|amp|#\d{1,6});")

Matrix = list[list[str]]


def plain_lines(text: str) -> list[str]:
    """Split a capture into lines without escape sequences, HTML and non-breaking spaces.

    >>> plain_lines("\\x1b[4m\\tGPU0\\x1b[0m<br>GPU0\\t X ")
    ['\\tGPU0', 'GPU0\\t X ']
    """
    text = _ESCAPE.sub("", text)
    if "\n" not in text.strip() and "\\n" in text:  # a string of a JSON log
        text = text.replace("\\n", "\n").replace("\\t", "\t")
    if "&" in text:
        text = _ENTITY.sub(lambda match: html.unescape(match[0]), text)
    if "<" in text:
        text = _TAG.sub("", _BREAK.sub("\n", text))
    return _BREAK.sub("\n", text).replace("\xa0", " ").split("\n")


def unknown_matrix(size: int) -> Matrix:
    """A link matrix of which nothing is known but who is who."""
    return [["X" if i == j else UNKNOWN for j in range(size)] for i in range(size)]


def mirror(matrix: Matrix) -> list[tuple[int, int]]:
    """Fill unknown links from the other end, in place; return the pairs whose ends disagree."""
    disagreeing = []
    for i, row in enumerate(matrix):
        for j in range(i):
            there, back = row[j], matrix[j][i]
            if there == back:
                continue
            if there == UNKNOWN:
                row[j] = back
            elif back == UNKNOWN:
                matrix[j][i] = there
            else:
                disagreeing.append((j, i))
    return disagreeing


def differing_ends(
    labels: Sequence[str], matrix: Matrix, pairs: Sequence[tuple[int, int]]
) -> list[str]:
    """Say which links their two ends see differently; many are counted."""
    texts = [
        f"{labels[i]} and {labels[j]} disagree about their link: {matrix[i][j]} and {matrix[j][i]}"
        for i, j in pairs
    ]
    more = f"{len(texts) - 1} more pairs do not agree about their links either"
    return texts if len(texts) <= FEW else [texts[0], more]


def missing_facts(hardware: Hardware, *, of: str = "") -> Iterator[str]:
    """Say which devices lack a NUMA node, a product, or known links to others."""
    devices = hardware.devices
    for fact in ("numa", "product"):
        lacking = [device.index for device in devices if getattr(device, fact) is None]
        if lacking:
            what = {"numa": "NUMA node", "product": "product"}[fact]
            yield f"{of}{what} of {device_list(lacking)}"
    dark: dict[int, int] = {}
    for i, row in enumerate(hardware.matrix):
        count = row.count(UNKNOWN)
        if count:
            dark[devices[i].index] = count
    if dark:
        total = sum(dark.values()) // 2
        yield f"{of}links of {device_list(list(dark))} ({total} of {_num_pairs(devices)} pairs)"
    if hardware.nics:
        near = hardware.nic_matrix
        lacking = [d.index for i, d in enumerate(devices) if not near or UNKNOWN in near[i]]
        if lacking:
            yield f"{of}distance to the NICs of {device_list(lacking)}"


def device_list(indexes: Sequence[int]) -> str:
    """Name devices shortly.

    >>> device_list([0, 1, 2, 5])
    'GPU 0-2, 5'
    """
    parts: list[str] = []
    ordered = sorted(indexes)
    start = 0
    for i in range(1, len(ordered) + 1):
        if i == len(ordered) or ordered[i] != ordered[i - 1] + 1:
            first, last = ordered[start], ordered[i - 1]
            parts.append(str(first) if first == last else f"{first}-{last}")
            start = i
    return "GPU " + ", ".join(parts)


def product_of(name: str) -> str:
    """Key of the product that a vendor's tool calls `name`; the name itself if it is not known."""
    product = find_product(name)
    return product.key if product else name


def merge_devices(hardware: Hardware, facts: dict[int, dict[str, Any]], source: str) -> Hardware:
    """Add facts by device index that another table of the same capture holds."""
    devices = []
    for device in hardware.devices:
        known = facts.get(device.index, {})
        sources = {**device.sources, **dict.fromkeys(known, source)}
        devices.append(replace(device, **known, sources=sources))
    return replace(hardware, devices=tuple(devices))


def one_node(
    hardware: Hardware,
    name: str,
    *,
    source: str,
    node_name: str | None = None,
    warnings: Sequence[str] = (),
    unknown: Sequence[str] = (),
) -> Topology:
    """Wrap what a capture says about one machine; the node is called after the file."""
    node = Node(
        name=node_name or node_name_of(name),
        hardware=hardware,
        domain=None,
        tiers=(),
        sources={"hardware": source},
    )
    return Topology(
        name=name,
        source=f"{source} {name}",
        tiers=(),
        nodes=(node,),
        warnings=tuple(warnings),
        unknown=tuple(unknown),
    )


def node_name_of(name: str) -> str:
    """Name a node after the file that describes it.

    >>> node_name_of("captures/dgx-7.txt"), node_name_of("-")
    ('dgx-7', 'node-0')
    """
    stem = PurePath(name).stem
    return stem if re.search(r"\w", stem) else "node-0"


def too_many(name: str, line: int, count: int) -> UsageError:
    """The error for a text that names more devices than a node can have."""
    return UsageError(
        f"{name}:{line}: names {count} devices, a node has at most {MAX_DEVICES}",
        hint="is this the output of the tool, as it was printed?",
    )


def _num_pairs(devices: Sequence[Any]) -> int:
    return len(devices) * (len(devices) - 1) // 2
