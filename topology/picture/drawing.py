"""SVG out of boxes: a drawing knows its size, so drawings can be put beside or below each other.

Names come from clusters, so every text passes `escaped`; nothing else here knows what is drawn.
"""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

# what XML 1.0 does not allow even when escaped
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
CHARACTER = 0.62  # width of a character in the fonts used, per unit of font size: a safe guess


@dataclass(frozen=True, slots=True)
class Drawing:
    width: float
    height: float
    body: str


def escaped(text: str) -> str:
    """Make any text safe inside an element or a quoted attribute."""
    return html.escape(_FORBIDDEN.sub("?", text))


def fitted(text: str, width: float, size: float) -> str:
    """Cut a text that would be wider than `width` at font size `size`, and escape it."""
    most = max(3, int(width / (size * CHARACTER)))
    return escaped(text if len(text) <= most else text[: most - 2] + "..")


def text_width(text: str, size: float) -> float:
    return len(text) * size * CHARACTER


def label(
    text: str, x: float, y: float, *, size: float, style: str = "", anchor: str = "start"
) -> str:
    """A line of text that has been escaped already; `y` is its baseline."""
    classes = f' class="{style}"' if style else ""
    at_end = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{x:g}" y="{y:g}" font-size="{size:g}"{at_end}{classes}>{text}</text>'


def rectangle(x: float, y: float, width: float, height: float, style: str, radius: int = 4) -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius}" '
        f'class="{style}"/>'
    )


def group(body: str, style: str, title: str = "") -> str:
    """Parts that belong together; a browser shows `title` under the pointer."""
    return f'<g class="{style}">{f"<title>{escaped(title)}</title>" if title else ""}{body}</g>'


def moved(drawing: Drawing, x: float, y: float) -> str:
    return f'<g transform="translate({x:g} {y:g})">{drawing.body}</g>'


def beside(drawings: Sequence[Drawing], gap: float) -> Drawing:
    """Put drawings in a row, their tops level."""
    x, parts = 0.0, []
    for drawing in drawings:
        parts.append(moved(drawing, x, 0))
        x += drawing.width + gap
    height = max((drawing.height for drawing in drawings), default=0)
    return Drawing(max(0, x - gap), height, "".join(parts))


def below(drawings: Sequence[Drawing], gap: float) -> Drawing:
    """Put drawings in a column, their left sides level."""
    y, parts = 0.0, []
    for drawing in drawings:
        parts.append(moved(drawing, 0, y))
        y += drawing.height + gap
    width = max((drawing.width for drawing in drawings), default=0)
    return Drawing(width, max(0, y - gap), "\n".join(parts))


def wrapped(drawings: Sequence[Drawing], max_width: float, gap: float) -> Drawing:
    """Put drawings in rows like words, none wider than `max_width` unless one drawing is."""
    rows: list[list[Drawing]] = [[]]
    width = 0.0
    for drawing in drawings:
        if rows[-1] and width + gap + drawing.width > max_width:
            rows.append([])
            width = 0
        width += drawing.width + gap * bool(rows[-1])
        rows[-1].append(drawing)
    return below([beside(row, gap) for row in rows if row], gap)


def framed(inner: Drawing, title: str, style: str, *, widest_title: float = 280) -> Drawing:
    """Put a titled frame around a drawing, wide enough for the title up to a limit."""
    size, pad = 12, 10
    width = max(inner.width, min(widest_title, text_width(title, size))) + 2 * pad
    top = pad + size + 6
    body = rectangle(0, 0, width, inner.height + top + pad, style)
    body += label(fitted(title, width - 2 * pad, size), pad, pad + size - 2, size=size, style="t")
    body += moved(inner, pad, top)
    return Drawing(width, inner.height + top + pad, group(body, f"{style}-box", title))
