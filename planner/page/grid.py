"""The rank grid: which RANK has which coordinates, a row per group of the innermost axis."""

from collections.abc import Iterator

from parctl.planner.page.parts import paragraph, section
from parctl.planner.plan import Plan
from parctl.topology.picture.drawing import escaped

MOST_ROWS, MOST_COLUMNS = 32, 32


def grid_section(plan: Plan) -> str:
    layout = plan.layout
    inner, size = list(layout.axes.items())[-1]
    columns = min(size, MOST_COLUMNS)
    head = "".join(f"<th>{escaped(inner)} {number}</th>" for number in range(columns))
    num_rows = layout.world_size // size
    rows = "".join(_row(plan, number, columns) for number in range(min(num_rows, MOST_ROWS)))
    notes = []
    if num_rows > MOST_ROWS:
        notes.append(f"and {num_rows - MOST_ROWS:,} more rows")
    if size > columns:
        notes.append(f"and {size - columns:,} more columns")
    return section(
        "Ranks by mesh coordinates",
        f'<div class="scroll grid"><table><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>",
        *(paragraph(note, "dim") for note in notes),
    )


def _row(plan: Plan, number: int, columns: int) -> str:
    layout = plan.layout
    size = list(layout.axes.values())[-1]
    ranks = layout.ranks[number * size : number * size + columns]
    cells = "".join(
        f'<td title="{escaped(layout.slots[rank].node)}, device {layout.slots[rank].gpu}">{rank}'
        "</td>"
        for rank in ranks
    )
    return f"<tr><th>{escaped(', '.join(_outer(plan, number)))}</th>{cells}</tr>"


def _outer(plan: Plan, number: int) -> Iterator[str]:
    """Coordinates on all axes but the innermost."""
    told = []
    for axis, size in list(plan.layout.axes.items())[-2::-1]:
        number, coordinate = divmod(number, size)
        told.append(f"{axis} {coordinate}")
    yield from reversed(told)
