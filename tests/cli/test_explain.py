"""`parctl explain`: tables, topics, charts, in every format."""

import json

import pytest

from parctl.cli.main import run

Captured = pytest.CaptureFixture[str]


def test_alone_it_compares_the_forms(capsys: Captured) -> None:
    assert run(["explain"]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[0].split("  ")[0] == "FORM"
    heads = shown.upper()
    for column in ("SLICED", "ALONG", "COLLECTIVE", "BANDWIDTH", "MEMORY", "COMPUTE", "TRAINING"):
        assert column in heads
    assert max(map(len, shown.splitlines())) <= 120


def test_alone_as_json_it_is_a_list_of_rows(capsys: Captured) -> None:
    assert run(["explain", "-o", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["collective"] for row in rows if row["name"] == "pp"] == [
        "send and receive between neighbours"
    ]


def test_a_topic_in_every_format(capsys: Captured) -> None:
    assert run(["explain", "TP"]) == 0
    assert capsys.readouterr().out.startswith("Tensor parallelism (tp)\n")
    assert run(["explain", "tp", "-o", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["source"]["arxiv"] == "1909.08053"
    assert document["mermaid"].startswith("flowchart")
    assert run(["explain", "tp", "-o", "mermaid"]) == 0
    assert capsys.readouterr().out == document["mermaid"]


def test_an_unknown_topic_or_format_exits_with_2(capsys: Captured) -> None:
    assert run(["explain", "tensr"]) == 2
    assert "did you mean `tp`" in capsys.readouterr().err
    assert run(["explain", "tp", "-o", "svg"]) == 2
    assert "no such format here" in capsys.readouterr().err


def test_a_schedule_is_drawn_in_every_format(capsys: Captured) -> None:
    words = ["explain", "schedule", "--pp", "4", "--micro-batches", "8"]
    words += ["--schedule", "interleaved-1f1b"]
    assert run(words) == 0
    text = capsys.readouterr().out
    assert text.startswith("interleaved-1f1b: 4 ranks of 2 stages each")
    assert "Idle: 15.8% of the step" in text and "= 3/19 = 15.8% (2104.04473)" in text
    assert run([*words, "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["duration"] == 57
    assert run([*words, "-o", "svg"]) == 0
    assert capsys.readouterr().out.startswith("<svg ")
    assert run([*words, "-o", "mermaid"]) == 0
    assert capsys.readouterr().out.startswith("gantt\n")


def test_a_schedule_that_cannot_be_is_refused(capsys: Captured) -> None:
    assert run(["explain", "schedule", "--schedule", "dualpipev", "--micro-batches", "5"]) == 2
    assert "at least 2 x pp (4) = 8" in capsys.readouterr().err
