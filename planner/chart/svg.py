"""A chart as SVG: a bar per action, coloured by kind, darker for a rank's later stages.

Colours are CSS variables with a light and a dark set, so that the same picture stands alone or in a
page. Letters and numbers in the bars say the same as the colours.
"""

from parctl.planner.chart.chart import Chart
from parctl.planner.chart.text import heading, summary
from parctl.topology.picture.drawing import escaped, group, label, rectangle

ROW, GAP, MARGIN, NAME = 26, 4, 16, 56  # pixels
SMALLEST, LARGEST, WIDTH = 5.0, 34.0, 1180.0  # of a unit, and of the bars together
COLOURS = """
:root{color-scheme:light dark;--ink:#1f2933;--dim:#52606d;--paper:#fff;--lane:#eef2f6;
--F:#0072b2;--B:#009e73;--I:#009e73;--W:#e69f00;--on-F:#fff;--on-B:#04281c;--on-W:#2b1d00}
@media (prefers-color-scheme:dark){:root{--ink:#e4e9ee;--dim:#9fb0c0;--paper:#12181f;
--lane:#1c252f;--F:#3d9bdc;--B:#2fbf94;--I:#2fbf94;--W:#e8ad2e;--on-F:#04121c}}
"""
STYLE = """
.chart text{font-family:ui-sans-serif,system-ui,"DejaVu Sans",Arial,sans-serif;fill:var(--ink)}
.chart .paper{fill:var(--paper)}.chart .lane{fill:var(--lane)}.chart .dim{fill:var(--dim)}
.chart .t{font-weight:600}
.chart .F rect{fill:var(--F)}.chart .F text{fill:var(--on-F)}
.chart .B rect,.chart .I rect{fill:var(--B)}.chart .B text,.chart .I text{fill:var(--on-B)}
.chart .W rect{fill:var(--W)}.chart .W text{fill:var(--on-W)}
.chart .late rect{filter:brightness(.75)}.chart .late text{fill:#fff}
.chart .I rect{opacity:.75}
"""


def chart_svg(chart: Chart, *, alone: bool = True) -> str:
    """Draw the chart. `alone`: with its own style, heading and sentences, as a file of its own."""
    unit = WIDTH / chart.timeline.duration
    if chart.even:
        unit = min(LARGEST, max(SMALLEST, unit))
    bars = unit * chart.timeline.duration
    top = MARGIN + 26 if alone else 4
    body = []
    for rank, row in enumerate(chart.timeline.rows):
        y = top + rank * (ROW + GAP)
        body.append(label(f"rank {rank}", MARGIN, y + 17, size=12, style="dim"))
        body.append(rectangle(MARGIN + NAME, y, bars, ROW, "lane", radius=3))
        for action, start, end in row:
            x, width = MARGIN + NAME + start * unit, (end - start) * unit
            text = chart.label(action)
            inside = rectangle(x + 0.5, y, width - 1, ROW, "bar", radius=2)
            if width >= 6.5 * len(text) + 2:
                inside += label(text, x + width / 2, y + 17, size=10.5, anchor="middle")
            elif width >= 6.5 * len(str(action.micro_batch)) + 1:
                short = str(action.micro_batch)
                inside += label(short, x + width / 2, y + 17, size=10, anchor="middle")
            late = " late" if chart.chunk(action.stage) else ""
            told = (
                f"{text}: stage {action.stage}, {start:.5g} to {end:.5g}{' ms' * (not chart.even)}"
            )
            body.append(group(inside, f"{action.kind}{late}", told))
    bottom = top + chart.pp * (ROW + GAP)
    width = max(bars + NAME, 760 if alone else 0) + 2 * MARGIN
    if alone:
        body.insert(0, rectangle(0, 0, width, bottom + 98, "paper", radius=0))
        body.append(label(escaped(heading(chart)), MARGIN, MARGIN + 10, size=14, style="t"))
        for number, line in enumerate(summary(chart, "grey is idle")):
            y = bottom + 22 + 19 * number
            body.append(label(escaped(line), MARGIN, y, size=12, style="dim"))
    height = bottom + (98 if alone else 4)
    style = f"<style>{COLOURS}{STYLE}</style>\n" if alone else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" height="{height:g}" class="chart" role="img">\n'
        f"<title>{escaped(heading(chart))}</title>\n{style}" + "\n".join(body) + "\n</svg>\n"
    )
