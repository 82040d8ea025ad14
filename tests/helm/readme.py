"""The table of values in the chart's README, made from the comments in values.yaml.

    python -m tests.helm.readme        # writes it

A comment that starts with two dashes describes the key in the line below it.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from tests.helm.chart import CHART

README = CHART / "README.md"
BEGIN, END = "<!-- values: begin -->", "<!-- values: end -->"
_KEY = re.compile(r"( *)([A-Za-z]\w*):")


def described_keys(text: str) -> Iterator[tuple[str, str]]:
    """Each described key as a dotted path, and its description."""
    path: list[tuple[int, str]] = []
    comment: str | None = None
    for line in text.splitlines():
        if line.strip().startswith("# -- "):
            comment = line.strip().removeprefix("# -- ")
            continue
        match = _KEY.match(line)
        if match:
            depth = len(match[1])
            path = [(level, key) for level, key in path if level < depth]
            path.append((depth, match[2]))
            if comment is not None:
                yield ".".join(key for _, key in path), comment
        comment = None


def value_at(values: dict[str, Any], path: str) -> Any:
    found: Any = values
    for key in path.split("."):
        found = found[key]
    return found


def values_table(file: Path = CHART / "values.yaml") -> str:
    text = file.read_text()
    values = yaml.safe_load(text)
    rows = ["| value | default | what it is |", "|---|---|---|"]
    for path, description in described_keys(text):
        default = json.dumps(value_at(values, path))
        rows.append(f"| `{path}` | `{default}` | {description} |")
    return "\n".join(rows)


def with_table(readme: str) -> str:
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{values_table()}\n{END}{after}"


def main() -> int:
    README.write_text(with_table(README.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
