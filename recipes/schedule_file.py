"""A pipeline schedule of the user's own: a CSV file with one row per pipeline rank.

    0F0,0F1,,0I0,0F2,0W0, ...
    ,1F0,1I0,1W0, ...

A cell is a stage, what it computes (F forward, B whole backward, or in two halves I for the input's
and W for the weights' gradient) and a micro-batch; an empty cell is idle time. It is the form that
torch.distributed.pipelining writes and reads for compute actions. Times are not taken from it: a
rank works through its row and waits where it has to.

The one idea: whatever a file alone can get wrong is refused here, so that later code trusts it.
That the order can be worked through is checked with the number of micro-batches at hand
(`planner.schedule_rules`).
"""

import csv
import re
from collections import Counter
from pathlib import Path

ACTION = re.compile(r"(\d+)([FBIW])(\d+)")
Rows = tuple[tuple[str, ...], ...]


def read_schedule_file(path: Path) -> tuple[Rows, int, str | None]:
    """Return the rows without idle cells, the number of stages, and what is wrong with them."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            cells = [[cell.strip() for cell in row] for row in csv.reader(file)]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        return (), 0, f"cannot read `{path}`: {reason}"
    rows = tuple(tuple(cell for cell in row if cell) for row in cells if any(row))
    owners: dict[int, int] = {}
    done: Counter[tuple[int, str, int]] = Counter()
    for rank, row in enumerate(rows):
        for cell in row:
            match = ACTION.fullmatch(cell)
            if match is None:
                message = f"found `{cell}` in row {rank + 1}, expected a stage, one of F, B, I, W"
                return (), 0, f"{message}, and a micro-batch, as in `0F3`"
            stage, kind, index = int(match[1]), match[2], int(match[3])
            if owners.setdefault(stage, rank) != rank:
                return (), 0, f"stage {stage} is in row {owners[stage] + 1} and in row {rank + 1}"
            for part in "IW" if kind == "B" else kind:
                done[stage, part, index] += 1
    return rows, len(owners), _incomplete(rows, owners, done)


def _incomplete(
    rows: Rows, owners: dict[int, int], done: Counter[tuple[int, str, int]]
) -> str | None:
    """Say which action is missing or stands twice."""
    if not owners:
        return "the file has no actions"
    if sorted(owners) != list(range(len(owners))) or len(owners) % len(rows):
        found = ", ".join(map(str, sorted(owners)))
        return f"found stages {found} in {len(rows)} rows, expected 0, 1, ... and as many per row"
    count = 1 + max(index for _, _, index in done)
    for stage in range(len(owners)):
        for index in range(count):
            for kind, name in (("F", "F"), ("I", "B or I"), ("W", "B or W")):
                times = done[stage, kind, index]
                if times != 1:
                    what = f"{name} of micro-batch {index} on stage {stage}"
                    found = "is missing" if times == 0 else f"stands {times} times, expected once"
                    return f"{what} {found}"
    return None
