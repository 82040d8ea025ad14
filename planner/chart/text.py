"""A chart in characters: a row per rank, a column per unit of time.

::

    rank 0  F0 F1 .. .. .. B0--- F2 B1---
    rank 1  .. F0 B0--- F1 B1--- F2 ...

Labels name what is computed, dashes fill the rest of its time, dots are idle. What is wider than
the terminal goes on below.
"""

from collections.abc import Iterator

from parctl.planner.chart.chart import UNITS, Chart


def chart_text(chart: Chart, *, width: int | None = None) -> str:
    """Draw the chart with the sentences that read it. `width`: characters of a line; None: any.

    Characters count units of time: a chart in seconds is drawn as SVG.
    """
    assert chart.even
    return "\n".join([heading(chart), "", *rows(chart, width), "", *summary(chart), ""])


def heading(chart: Chart) -> str:
    stages = ""
    if chart.virtual_stages > 1:
        stages = f" of {chart.virtual_stages} stages each (a, b, ...)"
    return (
        f"{chart.name}: {chart.pp} rank{'s' * (chart.pp > 1)}{stages}, "
        f"{chart.num_micro_batches} micro-batch{'es' * (chart.num_micro_batches > 1)}, "
        f"{chart.timeline.duration:,.5g} {chart.unit}"
    )


def rows(chart: Chart, width: int | None = None) -> Iterator[str]:
    """Yield the lines of the chart, in bands where one would be wider than `width`."""
    cell = 1 + max(len(chart.label(action)) for row in chart.timeline.rows for action, _, _ in row)
    names = [f"rank {rank}" for rank in range(chart.pp)]
    margin = max(map(len, names)) + 2
    num_cells = round(chart.timeline.duration)
    per_band = num_cells if width is None else max(4, (width - margin) // cell)
    lines = [_cells(chart, rank, cell, num_cells) for rank in range(chart.pp)]
    for first in range(0, num_cells, per_band):
        if per_band < num_cells:
            last = min(first + per_band, num_cells)
            yield f"{'':>{margin}}units {first} to {last}"
        for name, cells in zip(names, lines, strict=True):
            yield f"{name:<{margin}}{''.join(cells[first : first + per_band])}".rstrip()


def _cells(chart: Chart, rank: int, cell: int, num_cells: int) -> list[str]:
    idle = "." * (cell - 1) + " "
    cells = [idle] * num_cells
    for action, start, end in chart.timeline.rows[rank]:
        first, count = round(start), round(end - start)
        text = f"{chart.label(action):-<{cell * count - 1}} " if count > 1 else ""
        text = text or f"{chart.label(action):<{cell}}"
        for number in range(count):
            cells[first + number] = text[number * cell : (number + 1) * cell]
    return cells


def summary(chart: Chart, idle_sign: str = "dots are idle") -> list[str]:
    """Say what the letters are, how much is idle by the chart and by the paper, what is held."""
    kinds = {action.kind for row in chart.timeline.rows for action, _, _ in row}
    meaning = {
        "F": "F forward",
        "B": "B backward",
        "I": "I backward for the input",
        "W": "W backward for the weights",
    }
    told = ", ".join(
        f"{meaning[kind]} ({UNITS[kind]:g} unit{'s' * (UNITS[kind] > 1)})"
        if chart.even
        else meaning[kind]
        for kind in ("F", "B", "I", "W")
        if kind in kinds
    )
    share, closed = chart.idle_share, chart.closed_form
    idle = f"Idle: {share:.1%} of the step, {share / (1 - share):.1%} on top of the work."
    if closed is None:
        beside = "A schedule of your own has no closed form."
    elif closed.holds(chart.pp, chart.num_micro_batches):
        beside = (
            f"Closed form{'' if chart.even else ' for even stages'}: {closed.formula} = "
            f"{closed.idle_share} = {float(closed.idle_share):.1%} ({closed.source})."
        )
    else:
        beside = (
            f"Closed form: {closed.formula}, from {closed.least * chart.pp} micro-batches on "
            f"({closed.source})."
        )
    each = f"1/{chart.num_stages}" if chart.num_stages > 1 else "all"
    held = (
        f"Held at most: {', '.join(map(str, chart.held))} forward passes by rank, each of {each} "
        "of the layers."
    )
    return [f"{told}; {idle_sign}.", idle, beside, held]
