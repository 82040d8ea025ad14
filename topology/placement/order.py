"""The order of nodes: natural order of their names decides node ranks."""

import re
from collections.abc import Iterable

from parctl.topology.model import Node

_DIGITS = re.compile(r"([0-9]+)")

NaturalKey = tuple[tuple[tuple[int, int, str], ...], str]


def natural_key(name: str) -> NaturalKey:
    """Sort key by which `node-2` comes before `node-10`, equal for equal names only.

    Numbers count as numbers, whether they are padded or not; `n1` and `n01` differ by plain text.

    >>> sorted(["tux10", "tux08", "tux6"], key=natural_key)
    ['tux6', 'tux08', 'tux10']
    """
    return tuple(_part_key(part) for part in _DIGITS.split(name) if part), name


def in_natural_order(nodes: Iterable[Node]) -> tuple[Node, ...]:
    """Sort nodes by name."""
    return tuple(sorted(nodes, key=lambda node: natural_key(node.name)))


def _part_key(part: str) -> tuple[int, int, str]:
    if not _DIGITS.fullmatch(part):
        return 1, 0, part
    # digits compare by length, then as text: no number is too long
    digits = part.lstrip("0")
    return 0, len(digits), digits
