"""Charts are the schedules themselves, and idle as long as their papers say."""

import json
import re
import xml.etree.ElementTree as ElementTree
from fractions import Fraction
from itertools import chain, pairwise

import pytest

from parctl.errors import UsageError
from parctl.planner.chart.chart import NAMES, Chart, Name, chart_of
from parctl.planner.chart.gantt import chart_mermaid
from parctl.planner.chart.svg import chart_svg
from parctl.planner.chart.text import chart_text, rows
from parctl.planner.schedules import named_table

SVG = "{http://www.w3.org/2000/svg}"
SHAPES = [
    (name, pp, m, v)
    for name in NAMES
    for pp in (2, 3, 4, 8)
    for m in (2 * pp, 4 * pp)
    for v in (
        (2, 3) if name == "interleaved-1f1b" else (1, 2) if name == "zero-bubble" else (None,)
    )
]


def exact_idle_share(chart: Chart) -> Fraction:
    """Units are whole, so the share of the timeline is a fraction."""
    work = sum(Fraction(end - start) for row in chart.timeline.rows for _, start, end in row)
    return 1 - work / (chart.pp * Fraction(chart.timeline.duration))


@pytest.mark.parametrize(("name", "pp", "m", "v"), SHAPES)
def test_the_idle_share_of_even_stages_is_that_of_the_paper_exactly(
    name: Name, pp: int, m: int, v: int | None
) -> None:
    chart = chart_of(name, pp=pp, num_micro_batches=m, virtual_stages=v)

    assert chart.closed_form is not None and chart.closed_form.holds(pp, m)
    assert exact_idle_share(chart) == chart.closed_form.idle_share


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("layer", Fraction(3, 4)),
        ("gpipe", Fraction(3, 11)),
        ("1f1b", Fraction(3, 11)),
        ("interleaved-1f1b", Fraction(3, 19)),
        ("zero-bubble", Fraction(1, 9)),
        ("zbv", Fraction(1, 17)),
        ("dualpipev", Fraction(1, 17)),
    ],
)
def test_idle_shares_of_four_ranks_and_eight_micro_batches(name: str, share: Fraction) -> None:
    assert exact_idle_share(chart_of(name, pp=4, num_micro_batches=8)) == share


def test_a_small_chart_by_hand() -> None:
    drawn = list(rows(chart_of("1f1b", pp=2, num_micro_batches=2)))

    assert drawn == [
        "rank 0  F0 F1 .. .. B0--- .. B1---",
        "rank 1  .. F0 B0--- F1 B1--- .. ..",
    ]


def test_stages_of_one_rank_are_told_apart_by_a_letter() -> None:
    drawn = list(rows(chart_of("interleaved-1f1b", pp=2, num_micro_batches=2)))

    assert drawn[0].startswith("rank 0  F0a F1a F0b F1b")


def test_a_narrow_terminal_gets_bands_that_hold_the_same() -> None:
    chart = chart_of("1f1b", pp=4, num_micro_batches=8)
    whole, bands = list(rows(chart)), list(rows(chart, 80))

    assert max(map(len, bands)) <= 80
    for rank in range(4):
        parts = [line[8:].split() for line in bands if line.startswith(f"rank {rank}")]
        assert "".join(chain.from_iterable(parts)) == "".join(whole[rank][8:].split())


@pytest.mark.parametrize("name", NAMES)
def test_what_is_drawn_is_the_table_that_ranks_execute(name: Name) -> None:
    chart = chart_of(name, pp=4, num_micro_batches=8)
    table = named_table(name, 4, chart.virtual_stages, 8)
    wanted = [[chart.label(action) for action in row] for row in table]

    texts = [re.findall(r"[FBIW]\d+[a-z]?", line) for line in rows(chart)]
    assert texts == wanted
    root = ElementTree.fromstring(chart_svg(chart))
    titles = [
        (title.text or "").partition(":")[0]
        for group in root.iter(f"{SVG}g")
        for title in group.findall(f"{SVG}title")
    ]
    assert titles == list(chain.from_iterable(wanted))
    bars = re.findall(r"^  ([FBIW]\d+[a-z]?) :", chart_mermaid(chart), re.MULTILINE)
    assert bars == list(chain.from_iterable(wanted))


def test_bars_of_the_svg_never_lie_over_each_other() -> None:
    chart = chart_of("dualpipev", pp=4, num_micro_batches=8)
    root = ElementTree.fromstring(chart_svg(chart))
    rows: dict[str, list[tuple[float, float]]] = {}
    for group in root.iter(f"{SVG}g"):
        bar = group.find(f"{SVG}rect")
        assert bar is not None
        x = float(bar.get("x", ""))
        rows.setdefault(bar.get("y", ""), []).append((x, x + float(bar.get("width", ""))))

    assert len(rows) == 4
    for bars in rows.values():
        assert all(end <= start for (_, end), (start, _) in pairwise(bars))


def test_json_holds_every_action_and_both_shares() -> None:
    document = json.loads(json.dumps(chart_of("1f1b", pp=2, num_micro_batches=2).to_json()))

    assert document["ranks"][0][0] == {
        "stage": 0, "kind": "F", "micro_batch": 0, "start": 0.0, "end": 1.0
    }  # fmt: skip
    assert [len(row) for row in document["ranks"]] == [4, 4]
    assert document["idle_share"] == pytest.approx(1 / 3)
    assert document["closed_form"]["idle_share"] == pytest.approx(1 / 3)
    assert document["most_held"] == [2, 1]


def test_the_sentences_say_units_shares_and_what_is_held() -> None:
    text = chart_text(chart_of("zero-bubble", pp=4, num_micro_batches=8))

    assert "Idle: 11.1% of the step, 12.5% on top of the work." in text
    assert "(p - 1) / (3 v m + p - 1) = 1/9 = 11.1% (ZB-H1 of 2401.10241)" in text
    assert "Held at most: 4, 4, 4, 4 forward passes by rank, each of 1/4 of the layers." in text
    few = chart_text(chart_of("zero-bubble", pp=4, num_micro_batches=4))
    assert "from 8 micro-batches on" in few


@pytest.mark.parametrize(
    ("name", "pp", "m", "v", "message", "hint"),
    [
        ("2f2b", 4, 8, None, "no schedule `2f2b`", "one of layer, gpipe, 1f1b"),
        ("interleaved-1f1b", 4, 6, None, "expected a multiple of pp (4)", "8 micro-batches"),
        ("dualpipev", 4, 7, None, "at least 2 x pp (4) = 8", "8 micro-batches"),
        ("1f1b", 4, 8, 2, "1f1b has 1 stage per rank, not 2", "interleaved-1f1b"),
        ("zbv", 4, 8, 3, "zbv has 2 stages per rank, not 3", "virtual stages"),
        ("1f1b", 128, 1024, None, "are 393,216 actions", ""),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_the_numbers(
    name: str, pp: int, m: int, v: int | None, message: str, hint: str
) -> None:
    with pytest.raises(UsageError) as refused:
        chart_of(name, pp=pp, num_micro_batches=m, virtual_stages=v)
    assert message in refused.value.message
    assert hint in (refused.value.hint or "")
