"""Which branches of the templates a values file takes.

Every `if`, `else`, `with` and `range` of a template gets a comment right behind it, in a copy of
the chart; a branch was taken when its comment is in what Helm prints.
"""

import re
import shutil
from pathlib import Path

from tests.helm.chart import CHART, KUBERNETES, helm

_BRANCH = re.compile(r"\{\{-? *(?:if|else|with|range)\b.*?\}\}")
MARK = "# branch "


def marked_chart(folder: Path) -> tuple[Path, list[str]]:
    """A copy of the chart that tells its branches, and their names: `FILE:LINE`."""
    copy = folder / "parctl"
    shutil.copytree(CHART, copy)
    names = []
    for file in sorted((copy / "templates").rglob("*.yaml")):
        lines = file.read_text().splitlines(keepends=True)
        for i, line in enumerate(lines):
            stripped = line.strip()
            # a branch that is a line of its own; one inside of a line has no place for a comment
            if stripped.endswith("}}") and _BRANCH.fullmatch(stripped):
                name = f"{file.relative_to(copy / 'templates')}:{i + 1}"
                indent = line[: len(line) - len(line.lstrip())]
                lines[i] = f"{line.rstrip()}\n{indent}{MARK}{name}\n"
                names.append(name)
        file.write_text("".join(lines))
    return copy, names


def branches_taken(chart: Path, values: Path) -> set[str]:
    release = ("parctl", str(chart), "--namespace", "parctl", "--kube-version", KUBERNETES)
    done = helm("helm4", "template", *release, "--values", str(values))
    lines = (line.strip() for line in done.stdout.splitlines())
    return {line.removeprefix(MARK) for line in lines if line.startswith(MARK)}
