"""`parctl topology`: what a person and a program see."""

import json
from pathlib import Path

import pytest

from parctl.cli.main import run
from parctl.topology.describe import name_range, numbers_text
from parctl.topology.export import EXPORTS, export_text
from parctl.topology.store import topology_to_json
from parctl.topology.synthetic import parse_cluster

BROKEN = Path(__file__).resolve().parents[2] / "docs/pictures/b200-gpu2-down.yaml"


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
    "words",
    [
        ["--cluster", "h100:2x9"],
        ["--from", "no.json"],
        ["-o", "xml"],
        ["--devices", "0"],
        ["--from", "h100:2x8", "--node", "node-9"],
        ["--from", "h100:2x8", "--check", "-o", "svg"],
        ["diff", "h100:2x8"],
        ["diff", "h100:2x8", "no.json"],
    ],
)
def test_mistakes_exit_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["topology", *words]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("output", EXPORTS)
def test_every_text_format_is_printed_whole(
    output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["topology", "--from", "gb200:2x2x4", "-o", output]) == 0

    shown = capsys.readouterr()
    assert shown.out == export_text(parse_cluster("gb200:2x2x4"), output)
    assert shown.err == ""


def test_one_node_of_a_mixed_cluster_can_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["topology", "--from", "h100:1x8+v100:1x8", "--node", "node-1", "-o", "nccl-xml"]
    assert run(words) == 0
    assert capsys.readouterr().out.count("<gpu ") == 8


def test_check_shows_which_sizes_stay_on_nvlink(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["topology", "--from", "v100:1x8", "--check"]) == 0

    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert shown[4] == "3 yes 2 node-0: {0-2} {4-6} NV1"
    assert shown[6] == "5-8 no - the largest full mesh has 4 GPUs: node-0 {0-3}"
    assert shown[-1] == "no fault found"


def test_check_exits_1_when_something_is_broken(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["topology", "--from", str(BROKEN), "--check"]
    assert run(words) == 1
    assert "fault: b200-07: gpu 2: no NVLink" in capsys.readouterr().out

    assert run([*words, "-o", "json"]) == 1
    check = json.loads(capsys.readouterr().out)
    assert [answer["answer"] for answer in check["tp"]] == ["yes"] * 6 + ["no"]


def test_what_is_wrong_is_among_the_warnings_of_the_data(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(["topology", "--from", str(BROKEN), "-o", "json"]) == 0

    shown = capsys.readouterr()
    assert json.loads(shown.out)["warnings"] == [
        "b200-07: gpu 2: no NVLink, while {0-1,3-7} are joined",
        "b200-07: gpu 2: 7 uncorrected ECC errors",
    ]
    assert shown.err.startswith("warning: b200-07: gpu 2: no NVLink")

    # said once, however often it is saved and read
    (tmp_path / "saved.json").write_text(shown.out)
    run(["topology", "--from", str(tmp_path / "saved.json"), "-o", "json"])
    assert capsys.readouterr().out == shown.out


def test_diff_exits_1_when_something_changed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["topology", "diff", "h100:2x8", "h100:2x8"]) == 0
    assert capsys.readouterr().out == "no difference\n"

    assert run(["topology", "diff", "h100:2x8", "h100:3x8"]) == 1
    assert capsys.readouterr().out == "node-2: node added: 8 x h100\n"

    assert run(["topology", "diff", "h100:2x8", "h100:3x8", "-o", "json"]) == 1
    assert json.loads(capsys.readouterr().out) == {
        "same": False,
        "changes": [{"nodes": ["node-2"], "fact": "node", "before": None, "after": "8 x h100"}],
    }


def test_several_sources_are_one_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["topology", "--from", "h100:2x8", "--from", f"node-0={BROKEN}", "--check"]
    assert run(words) == 1
    assert "fault: node-0: gpu 2: 7 uncorrected ECC errors" in capsys.readouterr().out


def test_ranges_are_short() -> None:
    assert name_range(["a"]) == "a"
    assert name_range(["a", "b"]) == "a and b"
    assert name_range(["n1", "n2", "n9"]) == "n1, n2 and 1 more"
    assert name_range([f"n{i}" for i in range(1234)]) == "n0 .. n1233 (1,234)"
    assert numbers_text([]) == ""
    assert numbers_text([0, 1, 3]) == "0-1,3"
