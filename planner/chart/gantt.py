"""A chart as a Mermaid gantt diagram, which GitHub and many editors draw."""

from parctl.planner.chart.chart import Chart

# Mermaid counts milliseconds; a unit of the chart becomes a second on its axis
UNIT_MS = 1000


def chart_mermaid(chart: Chart) -> str:
    """Write the diagram: a section per rank, a bar per action, backward passes highlighted."""
    lines = [
        "gantt",
        f"  title {chart.name}, {chart.pp} ranks, {chart.num_micro_batches} micro-batches",
        "  dateFormat x",
        "  axisFormat %s",
    ]
    for rank, row in enumerate(chart.timeline.rows):
        lines.append(f"  section rank {rank}")
        for action, start, end in row:
            tag = {"F": "", "B": "active, ", "I": "active, ", "W": "done, "}[action.kind]
            first, last = round(start * UNIT_MS), round(end * UNIT_MS)
            lines.append(f"  {chart.label(action)} :{tag}{first}, {last}")
    return "\n".join(lines) + "\n"
