"""The order of nodes: natural order of their names decides node ranks."""

import re
from collections.abc import Iterable

from parctl.topology.model import Node

_DIGITS = re.compile(r"(\d+)")


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key by which `node-2` comes before `node-10`.

    >>> sorted(["node-10", "node-2"], key=natural_key)
    ['node-2', 'node-10']
    """
    return tuple(_part_key(part) for part in _DIGITS.split(name) if part)


def in_natural_order(nodes: Iterable[Node]) -> tuple[Node, ...]:
    """Sort nodes by name, numbers as numbers; equal numbers (`n1`, `n01`) by plain text."""
    return tuple(sorted(nodes, key=lambda node: (natural_key(node.name), node.name)))


def _part_key(part: str) -> tuple[int, int, str]:
    if not part.isdecimal():
        return 1, 0, part
    # digits compare by length, then as text: no number is too long
    digits = part.lstrip("0")
    return 0, len(digits), digits
