"""Plain aligned columns, without rich: `status` and `list` are asked often and answer fast."""

import time
from collections.abc import Sequence


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under a header, each column as wide as its widest cell."""
    lines = [[title.upper() for title in header], *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())


def ago(time_unix: float) -> str:
    """Return how long ago something was, as in `5s`, `12m`, `3h`, `9d`."""
    seconds = max(0.0, time.time() - time_unix)
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s"
