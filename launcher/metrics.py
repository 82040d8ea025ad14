"""Reading `metrics.jsonl`: one JSON object per logged step, written by one rank.

After a resume a step may be there twice; the higher attempt, and within it the later line, is the
one that counts.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TAIL_BYTES = 16 * 1024


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the last word on every step, in order. A line that is not whole is passed over."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    return metrics_of(text)


def metrics_of(text: str) -> list[dict[str, Any]]:
    """Return the same of the file's content."""
    steps: dict[int, dict[str, Any]] = {}
    for row in _rows(text):
        known = steps.get(row["step"])
        if known is None or row.get("attempt", 1) >= known.get("attempt", 1):
            steps[row["step"]] = row
    return [steps[step] for step in sorted(steps)]


def last_step(path: Path) -> int | None:
    """Return the step of the last line, reading only the end of the file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            rows = _rows(file.read().decode(errors="replace"))
    except FileNotFoundError:
        return None
    return int(rows[-1]["step"]) if rows else None


def step_of_line(line: str) -> int | None:
    """Return the step that a line is about."""
    rows = _rows(line)
    return int(rows[-1]["step"]) if rows else None


def _rows(text: str) -> list[dict[str, Any]]:
    rows = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, Mapping) and isinstance(row.get("step"), int):
            rows.append(dict(row))
    return rows
