"""The small pieces of the page: sections, tables, stacked bars. Texts are escaped where given."""

from collections.abc import Iterable, Sequence

from parctl.planner.page.style import NUM_COLOURS
from parctl.topology.picture.drawing import escaped


def section(title: str, *parts: str) -> str:
    return f"<section>\n<h2>{escaped(title)}</h2>\n" + "\n".join(parts) + "\n</section>"


def paragraph(text: str, style: str = "") -> str:
    return f'<p class="{style}">{escaped(text)}</p>'


def tile(value: str, words: str, style: str = "") -> str:
    return (
        f'<div class="tile"><b class="{style}">{escaped(value)}</b>'
        f"<span>{escaped(words)}</span></div>"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """`numbers`: columns that are set to the right."""

    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(
            f'<{tag} class="n">{escaped(cell)}</{tag}>'
            if column in numbers
            else f"<{tag}>{escaped(cell)}</{tag}>"
            for column, cell in enumerate(row)
        )

    body = "\n".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{cells(head, "th")}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def bar(shares: Sequence[tuple[int, float, str]], limit: float | None = None) -> str:
    """A stacked bar of (colour, share of the width, words), with a mark at `limit`."""
    spans = "".join(
        f'<span class="k{colour % NUM_COLOURS}" style="width:{100 * share:.3f}%" '
        f'title="{escaped(words)}"></span>'
        for colour, share, words in shares
    )
    mark = "" if limit is None else f'<span class="limit" style="left:{100 * limit:.3f}%"></span>'
    return f'<div class="bar">{spans}{mark}</div>'


def legend(entries: Iterable[tuple[int, str]]) -> str:
    items = "".join(
        f'<span><i class="k{colour % NUM_COLOURS}"></i>{escaped(words)}</span>'
        for colour, words in entries
    )
    return f'<div class="legend">{items}</div>'


def bullets(lines: Iterable[str]) -> str:
    return "<ul>" + "\n".join(f"<li>{escaped(line)}</li>" for line in lines) + "</ul>"
