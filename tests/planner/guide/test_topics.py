"""Every form of the field has an entry that says what, when, at what cost and by whom."""

import re

import pytest

from parctl.errors import UsageError
from parctl.planner.chart.chart import NAMES
from parctl.planner.guide.text import comparison_json, topic_drawing, topic_mermaid, topic_text
from parctl.planner.guide.topic import Topic, find_topic, topics
from parctl.recipes.shorthand import read_form

# what people call a form -> the topic that answers
FORMS = {
    "ddp": "dp",
    "data parallelism": "dp",
    "fsdp": "fsdp",
    "hsdp": "hsdp",
    "zero1": "zero1",
    "zero2": "zero2",
    "zero3": "zero3",
    "ZeRO-3": "zero3",
    "tp": "tp",
    "tensor parallelism": "tp",
    "sp": "sp",
    "sequence parallelism": "sp",
    "pp": "pp",
    "pipeline parallelism": "pp",
    "layer": "layer",
    "layer parallelism": "layer",
    "gpipe": "gpipe",
    "1f1b": "1f1b",
    "interleaved": "interleaved-1f1b",
    "interleaved-1f1b": "interleaved-1f1b",
    "zero-bubble": "zero-bubble",
    "zbv": "zbv",
    "dualpipe": "dualpipe",
    "dualpipev": "dualpipe",
    "micro-batching": "micro-batching",
    "Microbatching": "micro-batching",
    "cp": "cp",
    "context parallelism": "cp",
    "ring": "ring",
    "ring attention": "ring",
    "ulysses": "ulysses",
    "ep": "ep",
    "expert parallelism": "ep",
    "etp": "etp",
    "operator": "operator",
    "operator parallelism": "operator",
    "multi-stream": "multi-stream",
    "recompute": "recompute",
    "gradient checkpointing": "recompute",
    "activation partitioning": "activation-partitioning",
    "offload": "offload",
    "3d": "3d",
    "5d": "5d",
    "orthogonal": "orthogonal",
    "orthogonal parallelism": "orthogonal",
    "paged-attention": "paged-attention",
    "PagedAttention": "paged-attention",
    "distributed inference": "distributed-inference",
    "bubble": "bubble",
    "intra-layer": "intra-layer",
    "inter-layer parallelism": "intra-layer",
    "all-reduce": "collectives",
    "hardware mapping": "placement",
    "choosing": "choosing",
    "mixture of experts": "ep",
    "KV cache": "paged-attention",
}
# topic, and a number of its examples worked out here
EXAMPLES = {
    ("dp", "47.2 GB"): 2 * 7 / 8 * 4 * 6.74e9,
    ("zero1", "31.4 GB"): (2 + 2 + 12 / 64) * 7.5e9,
    ("zero2", "16.6 GB"): (2 + 14 / 64) * 7.5e9,
    ("zero3", "1.9 GB"): 16 / 64 * 7.5e9,
    ("fsdp", "66.2 GB"): 15 / 16 * 8 * 70.6e9 / 8,
    ("hsdp", "6.3 GB"): 2 * 15 / 16 * 4 * 6.74e9 / 8,
    ("tp", "940 MB"): 4 * 2 * 7 / 8 * 2 * 8192 * 8192,
    ("sp", "107 MB"): 2048 * 12288 * 34 / 8,
    ("sp", "327 MB"): 2048 * 12288 * (10 + 24 / 8),
    ("ring", "503 MB"): 15 * 4 * 131072 / 16 * 8 * 128,
    ("ulysses", "528 MB"): 7 / 8 * 2 * 131072 / 8 * (2 * 8192 + 2 * 8 * 128),
    ("ep", "117 MB"): 2 * 2 * 4096 * 2 * 4096 * 7 / 8,
    ("operator", "33.6 MB"): 2 * 2 * 2048 * 4096,
    ("pp", "16.8 MB"): 2 * 8192 * 8192 / 8,
    ("recompute", "134 MB"): 2 * 8192 * 8192,
    ("activation-partitioning", "117 MB"): 7 / 8 * 2 * 8192 * 8192,
    ("collectives", "2.45 ms"): 7 * 3e-6 + 1e9 * 7 / 8 / 360e9,
    ("collectives", "4.9 ms"): 2 * (7 * 3e-6 + 1e9 * 7 / 8 / 360e9),
    ("collectives", "0.246 ms"): 3e-6 + 1e8 * 7 / 8 / 360e9,
    ("placement", "2.1 ms"): 940e6 / 450e9,
    ("choosing", "1130 GB"): 16 * 70.6e9,
    ("paged-attention", "328 kB"): 2 * 80 * 8 * 128 * 2,
    ("paged-attention", "5.2 MB"): 16 * 327_680,
}
UNITS = {"ms": 1e-3, "kB": 1e3, "MB": 1e6, "GB": 1e9}
MERMAID_LINE = re.compile(
    r"  (subgraph \w+\[\".*\"\]|end|\w+(\[\".*?\"\]|\{\{\".*?\"\}\})?"
    r"( (-->|---|-\.->)(\|[^|]+\|)? \w+(\[\".*?\"\]|\{\{\".*?\"\}\})?)*)"
)


@pytest.mark.parametrize("asked", FORMS)
def test_every_form_is_explained_under_the_names_it_goes_by(asked: str) -> None:
    topic = find_topic(asked)

    assert topic.name == FORMS[asked]
    text = topic_text(topic)
    for heading in ("Use ", "When ", "For ", "Against ", "Cost ", "Source "):
        assert re.search(rf"^{heading}", text, re.MULTILINE), heading
    assert topic.what and topic.when and topic.pro and topic.con and topic.cost
    assert all(cost.formula and cost.where and cost.example for cost in topic.cost)
    assert re.search(r"(19|20)\d\d", str(topic.source.year)) and len(topic.source.title) > 12


@pytest.mark.parametrize("topic", topics(), ids=lambda topic: topic.name)
def test_every_topic_has_a_drawing_and_a_diagram(topic: Topic) -> None:
    drawn, diagram = topic_drawing(topic), topic_mermaid(topic)

    assert (topic.schedule is None) == (topic.drawing is not None)
    assert len(drawn.splitlines()) >= 3 and drawn.isascii()
    head, *lines = diagram.rstrip("\n").split("\n")
    if topic.schedule is not None:
        assert head == "gantt" and len(lines) > 8
        return
    assert head.startswith("flowchart ") and len(lines) >= 2
    for line in lines:
        assert MERMAID_LINE.fullmatch(line.replace("    ", "  ")), line


def test_names_lead_to_one_topic_each_and_links_to_topics() -> None:
    names = [name for topic in topics() for name in (topic.name, *topic.aliases)]
    assert len(names) == len(set(names))
    known = {topic.name for topic in topics()} | {"schedule"}
    assert {name for topic in topics() for name in topic.see} <= known


def test_every_schedule_of_recipes_has_a_topic() -> None:
    assert {find_topic(name).name for name in NAMES} == {
        "layer",
        "gpipe",
        "1f1b",
        "interleaved-1f1b",
        "zero-bubble",
        "zbv",
        "dualpipe",
    }


@pytest.mark.parametrize("topic", topics(), ids=lambda topic: topic.name)
def test_what_a_topic_writes_in_a_recipe_can_be_read(topic: Topic) -> None:
    if topic.recipe is not None and not topic.recipe.startswith("train."):
        read_form(topic.recipe)


@pytest.mark.parametrize(("name", "number"), EXAMPLES)
def test_the_examples_are_right(name: str, number: str) -> None:
    assert any(number in cost.example for cost in find_topic(name).cost)
    value, unit = number.split()
    assert EXAMPLES[name, number] / UNITS[unit] == pytest.approx(float(value), rel=0.015)


def test_sp_tells_both_meanings() -> None:
    text = " ".join(topic_text(find_topic("sp")).split())

    assert "First meaning" in text and "Second meaning" in text and "CP" in text
    assert "2205.05198" in text


def test_the_comparison_has_a_line_for_every_dimension() -> None:
    rows = {row["name"]: row for row in comparison_json()}

    assert set(rows) >= {"dp", "fsdp", "tp", "sp", "cp", "ep", "pp", "operator", "paged-attention"}
    assert all(value for row in rows.values() for value in row.values())
    assert rows["tp"]["bandwidth"].startswith("very high")
    assert rows["dp"]["inference"] == "replicas only"


@pytest.mark.parametrize(
    ("asked", "nearest"), [("sequnce", "sp"), ("ring-atention", "ring"), ("zero4", "zero3")]
)
def test_an_unknown_topic_names_the_nearest(asked: str, nearest: str) -> None:
    with pytest.raises(UsageError) as refused:
        find_topic(asked)
    assert f"`{nearest}`" in (refused.value.hint or "")
