"""Where the NVLinks of listed GPUs end: `nvidia-smi nvlink -R` and `nvlink -p`.

Both print the PCI address at the far end of every link that is up, but not the GPU's own::

    GPU 0: NVIDIA H100 PCIe (UUID: GPU-...)
             Link 0: Remote Device 00000000:D5:00.0: Link 0      (-p: `Link 0: 00000000:D5:00.0`)

GPUs that all reach the same addresses are joined by switches there, for no GPU is linked to itself.
Otherwise the addresses are the GPUs' own: nvidia-smi numbers GPUs by address, so the n-th address
belongs to the n-th GPU, and this is believed if the links are counted alike from both ends. The
table of plain `nvidia-smi` in the same text says it outright.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from parctl.topology.sources.capture import UNKNOWN, Matrix, unknown_matrix
from parctl.topology.sources.pci import pci_address

_PEER = re.compile(
    r"\bLink ([0-9]{1,2}): (Remote Device )?"
    r"([0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])(?![0-9a-z])",
    re.IGNORECASE,
)
# a row of plain `nvidia-smi`: number and name, then the address in the next cell
_ROW = re.compile(
    r"\|\s*([0-9]{1,3})\s+\S[^|]{1,60}\|\s*([0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.0)\s",
    re.IGNORECASE,
)
# what is printed where the other end may not be seen
_HIDDEN = re.compile(r"0+:00:00\.0|f+:ff:[0-9a-f]{2}\.[0-7]")

NO_PATH = "SYS"

Counts = Mapping[int, Counter[str | None]]  # links by GPU and far end
Ends = Mapping[int, Sequence[str | None]]  # far ends of the links by GPU; None: hidden


def peer_of(line: str) -> tuple[str, int, str | None] | None:
    """The command that printed it, the number of the link, and the address of its end."""
    match = _PEER.search(line)
    if match is None:
        return None
    address = pci_address(match[3])
    hidden = address is None or _HIDDEN.fullmatch(address) is not None
    return "nvlink -R" if match[2] else "nvlink -p", int(match[1]), None if hidden else address


def own_addresses(lines: Sequence[str]) -> dict[int, str]:
    """PCI address by GPU, from the table of plain `nvidia-smi`."""
    found: dict[int, str] = {}
    for line in lines:
        if match := _ROW.search(line):
            address = pci_address(match[2])
            if address is not None:
                found.setdefault(int(match[1]), address)
    return found


def peer_matrix(indexes: Sequence[int], ends: Ends, known: Mapping[int, str]) -> Matrix:
    """Links between the GPUs of these indexes, as far as the ends of their NVLinks tell them.

    `known` are own addresses that the text says. Of two GPUs without a common link only that much
    is known; their path through PCIe is written as the farthest, `SYS`.
    """
    matrix = unknown_matrix(len(indexes))
    counts = {index: Counter(ends[index]) for index in indexes if ends.get(index)}
    if list(indexes) == list(range(len(indexes))) and _all_on_switches(counts):
        joined = _through_switches(counts)
    elif own := _own_addresses(counts, known):
        joined = {(i, j): counts[i][own[j]] for i in counts for j in counts}
    else:
        joined = {}
    for i, one in enumerate(indexes):
        for j, two in enumerate(indexes):
            if i != j and (one, two) in joined:
                matrix[i][j] = f"NV{joined[one, two]}" if joined[one, two] else NO_PATH
    return matrix


def _all_on_switches(counts: Counts) -> bool:
    """Whether all GPUs with links reach the same addresses."""
    reached = [set(count) for count in counts.values()]
    return len(reached) > 1 and None not in reached[0] and all(r == reached[0] for r in reached)


def _through_switches(counts: Counts) -> dict[tuple[int, int], int]:
    """Links that each pair can use, as `topo -m` counts them. The last GPU may be cut."""
    total = {index: count.total() for index, count in counts.items()}
    last = max(counts)
    cut = total[last] < max(total.values())
    sure = [index for index in counts if not (cut and index == last)]
    return {(i, j): min(total[i], total[j]) for i in sure for j in sure}


def _own_addresses(counts: Counts, known: Mapping[int, str]) -> dict[int, str]:
    """Own address of every GPU that has links, {} when it cannot be told."""
    linked = sorted(counts)
    addresses = {address for count in counts.values() for address in count}
    if not linked or None in addresses:
        return {}
    if set(linked) <= set(known):
        own = {index: known[index] for index in linked}
    elif len(addresses) == len(linked):
        ordered = sorted(address for address in addresses if address is not None)
        own = dict(zip(linked, ordered, strict=True))
    else:
        return {}
    agree = all(counts[i][own[j]] == counts[j][own[i]] for i in linked for j in linked)
    alone = all(counts[i][own[i]] == 0 for i in linked)
    return own if agree and alone and addresses <= set(own.values()) else {}


def fill_unknown(matrix: Matrix, other: Matrix) -> bool:
    """Fill unknown cells from another matrix of the same devices; whether any was filled."""
    filled = False
    for row, cells in zip(matrix, other, strict=True):
        for j, code in enumerate(cells):
            if row[j] == UNKNOWN and code != UNKNOWN:
                row[j], filled = code, True
    return filled
