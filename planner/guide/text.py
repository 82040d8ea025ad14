"""A topic, and the comparison of all forms, as plain text.

The comparison is two tables, since ten columns of words fit no terminal: what each form cuts and
sends, then how well it does and what it is like.
"""

from collections.abc import Iterator, Mapping, Sequence
from textwrap import wrap
from typing import Any

from parctl.planner.chart.gantt import chart_mermaid
from parctl.planner.chart.text import chart_text
from parctl.planner.guide.topic import Topic, topics
from parctl.recipes.frozen import to_json

MARGIN = 10  # of the words beside a heading
TABLES: tuple[tuple[str, ...], ...] = (
    ("sliced", "along", "collective", "bandwidth"),
    ("memory", "compute", "training", "inference", "like"),
)
TITLES: Mapping[str, str] = {
    "sliced": "what is sliced",
    "along": "along",
    "collective": "collective",
    "bandwidth": "needs bandwidth",
    "memory": "saves memory",
    "compute": "uses compute",
    "training": "training",
    "inference": "inference",
    "like": "it is like",
}
# most characters of a column, by how much words gain from more
WIDTHS: Mapping[str, int] = {
    "sliced": 26,
    "along": 18,
    "collective": 30,
    "bandwidth": 15,
    "memory": 13,
    "compute": 15,
    "training": 17,
    "inference": 18,
    "like": 27,
}


def topic_text(topic: Topic, *, width: int = 100, widest: int | None = None) -> str:
    """Write the whole topic in lines of `width`; a drawing may be as wide as `widest`."""
    lines = [f"{topic.title} ({topic.name})", ""]
    lines += wrap(topic.what, width)
    lines.append("")
    lines += _beside("Use", [topic.use], width)
    lines += _beside("When", [topic.when], width)
    lines += _beside("For", topic.pro, width)
    lines += _beside("Against", topic.con, width)
    for number, cost in enumerate(topic.cost):
        said = [cost.what + ":", f"    {cost.formula}", f"with {cost.where}", cost.example]
        lines += _beside("Cost" if number == 0 else "", said, width)
    paper = f"{topic.source.title}, {topic.source.year}"
    if topic.source.arxiv:
        paper += f" (arXiv {topic.source.arxiv})"
    lines += _beside("Source", [paper], width)
    if topic.recipe:
        lines += _beside("Recipe", [topic.recipe], width)
    lines += _beside("See", [", ".join(topic.see)], width)
    return "\n".join([*lines, "", topic_drawing(topic, width=widest).rstrip("\n"), ""])


def topic_drawing(topic: Topic, *, width: int | None = None) -> str:
    """The drawing in characters: the chart of the topic's schedule, or its own."""
    if (chart := topic.chart) is not None:
        return chart_text(chart, width=width)
    assert topic.drawing is not None
    return topic.drawing


def topic_mermaid(topic: Topic) -> str:
    """The drawing as a Mermaid diagram."""
    if (chart := topic.chart) is not None:
        return chart_mermaid(chart)
    assert topic.mermaid is not None
    return topic.mermaid


def topic_json(topic: Topic) -> dict[str, Any]:
    document: dict[str, Any] = to_json(topic)
    return document | {"drawing": topic_drawing(topic), "mermaid": topic_mermaid(topic)}


def comparison_json() -> list[dict[str, Any]]:
    return [
        {"name": topic.name, "title": topic.title, **to_json(topic.row)}
        for topic in topics()
        if topic.row is not None
    ]


def comparison_text() -> str:
    """The tables, and below them the names of all topics."""
    compared = [topic for topic in topics() if topic.row is not None]
    lines: list[str] = []
    for columns in TABLES:
        head = ["form", *(TITLES[column] for column in columns)]
        body = [[topic.name, *(getattr(topic.row, name) for name in columns)] for topic in compared]
        lines += [*_table(head, body, [15, *(WIDTHS[name] for name in columns)]), ""]
    lines += _beside("Topics", [", ".join(topic.name for topic in topics())], 100)
    lines += ["", "`parctl explain TOPIC` says more; `parctl explain schedule --pp 4` draws one."]
    return "\n".join(lines) + "\n"


def comparison_mermaid() -> str:
    """Which form cuts what, as a diagram."""
    lines = ["flowchart LR", '  M["a training step"]']
    for topic in topics():
        if topic.row is not None:
            lines.append(
                f'  M --> {topic.name.replace("-", "_")}["{topic.name}: {topic.row.sliced}"]'
            )
    return "\n".join(lines) + "\n"


def _beside(heading: str, paragraphs: Sequence[str], width: int) -> Iterator[str]:
    """A heading in the margin, and each paragraph beside it."""
    for paragraph in paragraphs:
        indent = " " * (MARGIN + len(paragraph) - len(paragraph.lstrip()))
        for line in wrap(paragraph.lstrip(), width - len(indent)):
            yield f"{heading:<{len(indent)}}{line}"
            heading = ""


def _table(head: Sequence[str], body: Sequence[Sequence[str]], widths: Sequence[int]) -> list[str]:
    """Columns as wide as their words need, up to `widths`; what is longer goes on below."""
    needed = [max(len(row[i]) for row in (head, *body)) for i in range(len(head))]
    sizes = [min(*pair) for pair in zip(needed, widths, strict=True)]
    lines = []
    for row in ([title.upper() for title in head], *body):
        cells = [wrap(text, size) or [""] for text, size in zip(row, sizes, strict=True)]
        for number in range(max(map(len, cells))):
            parts = (
                f"{cell[number] if number < len(cell) else '':<{size}}"
                for cell, size in zip(cells, sizes, strict=True)
            )
            lines.append("  ".join(parts).rstrip())
    return lines
