"""`parctl topology`: what a person and a program see."""

import json
from pathlib import Path

import pytest

from parctl.cli.main import run
from parctl.cli.topology_view import name_range, numbers_text
from parctl.topology.store import topology_to_json
from parctl.topology.synthetic import parse_cluster


def test_the_table_shows_one_row_per_kind_of_node(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["topology", "--cluster", "h100:2x8+l40s:1x4"]) == 0

    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert shown[0] == "h100:2x8+l40s:1x4: 3 nodes, 20 GPUs (synthetic h100:2x8+l40s:1x4)"
    assert shown[3] == (
        "node-0 .. node-1 (2) 8 x h100 85.5 GB {0-7} NV18 0: 0-3 | 1: 4-7 8 x 400 Gbit/s "
        "synthetic, product"
    )
    assert shown[4].startswith("node-2 4 x l40s 48.0 GB {0-3} PCIe 0: 0-1 | 1: 2-3 4 x 100 Gbit/s")
    assert shown[6].startswith("unknown: fabric tiers")


def test_a_mesh_that_is_not_full_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    run(["topology", "--cluster", "v100:1x8"])

    shown = " ".join(capsys.readouterr().out.split())
    assert (
        "NVLink connects all GPUs of node-0, but only these are joined each with each: "
        "{0-3} NV1 {4-7} NV1"
    ) in shown


def test_the_tree_goes_from_domain_to_link(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["topology", "--from", "gb200:2x18x4", "-o", "tree"]) == 0

    shown = capsys.readouterr().out
    assert "NVLink domain domain-1" in shown
    assert "node-18 .. node-35 (18)" in shown
    assert "gpu 3  NV18 NV18 NV18 X" in shown


def test_json_is_read_back_as_a_cluster(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run(["topology", "--cluster", "gb200:1x2x4", "-o", "json"])
    text = capsys.readouterr().out
    (tmp_path / "cluster.json").write_text(text)

    assert json.loads(text) == topology_to_json(parse_cluster("gb200:1x2x4"))
    assert run(["topology", "--cluster", str(tmp_path / "cluster.json"), "-o", "json"]) == 0
    assert capsys.readouterr().out == text


def test_yaml_has_no_anchors_and_is_read_back(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run(["topology", "--cluster", "h100:2x2", "-o", "yaml"])
    text = capsys.readouterr().out
    (tmp_path / "cluster.yaml").write_text(text)

    assert "&id" not in text
    assert run(["topology", "--cluster", str(tmp_path / "cluster.yaml"), "-o", "yaml"]) == 0
    assert capsys.readouterr().out == text


def test_this_machine_warns_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["topology", "--devices", "512"]) == 0

    captured = capsys.readouterr()
    assert "512 CPU devices (local)" in captured.out
    assert captured.err.startswith("warning: 512 CPU devices share ")


@pytest.mark.parametrize(
    "words", [["--cluster", "h100:2x9"], ["--from", "no.json"], ["-o", "xml"], ["--devices", "0"]]
)
def test_mistakes_exit_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["topology", *words]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_ranges_are_short() -> None:
    assert name_range(["a"]) == "a"
    assert name_range([f"n{i}" for i in range(1234)]) == "n0 .. n1233 (1,234)"
    assert numbers_text([]) == ""
    assert numbers_text([0, 1, 3]) == "0-1,3"
