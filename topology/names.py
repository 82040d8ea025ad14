"""How several nodes are named in one sentence."""

from collections.abc import Sequence


def few(names: Sequence[str], most: int = 3) -> str:
    """Name a few and count the rest.

    >>> few(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
