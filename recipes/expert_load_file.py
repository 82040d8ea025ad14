"""The load of experts that a run measured: `expert_load.json` in its directory.

    [[], [812, 1204, 998, 1082], [1010, 1003, 1034, 1049]]

One list per layer: how often each expert was chosen, empty where a layer has none.
"""

import json
from pathlib import Path
from typing import Any

Rows = tuple[tuple[float, ...], ...]


def read_expert_load_file(path: Path) -> tuple[Rows, str | None]:
    """Return the load of every layer, and what is wrong with the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        return (), f"cannot read `{path}`: {error.strerror}"
    except ValueError:
        return (), f"cannot read `{path}`: it is not JSON"
    if not isinstance(content, list) or not all(_is_load(row) for row in content):
        return (), f"`{path}` is no list of lists of numbers from 0 on"
    return tuple(tuple(float(value) for value in row) for row in content), None


def _is_load(row: Any) -> bool:
    return isinstance(row, list) and all(
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and 0 <= value < float("inf")
        for value in row
    )
