"""`parctl plan`: what a person and a program read."""

import io
import json
import re
import subprocess
import sys

import pytest
import yaml
from rich.console import Console

from parctl.cli.main import run
from parctl.cli.plan_view import show_plan
from parctl.cli.status import predictions
from parctl.planner.make import make_plan
from parctl.recipes.loader import load_recipe
from parctl.topology.synthetic import parse_cluster

Captured = pytest.CaptureFixture[str]


def test_json_holds_the_axes(capsys: Captured) -> None:
    assert run(["plan", "llama-70b", "--cluster", "h100:16x8", "-o", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["layout"]["axes"] == {"fsdp": 16, "tp": 8}
    tensor = [proof for proof in document["layout"]["proofs"] if proof["axis"] == "tp"]
    assert [proof["worst_link"] for proof in tensor] == ["nvlink"]
    assert document["schema"] == 1


def test_yaml_is_the_same_document(capsys: Captured) -> None:
    run(["plan", "tiny-llama", "--cluster", "h100:1x4", "-o", "json"])
    as_json = json.loads(capsys.readouterr().out)
    run(["plan", "tiny-llama", "--cluster", "h100:1x4", "-o", "yaml"])
    assert yaml.safe_load(capsys.readouterr().out) == as_json


def test_the_table_shows_groups_ranks_memory_and_reasons(capsys: Captured) -> None:
    assert run(["plan", "llama-70b", "--cluster", "h100:16x8"]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0].startswith(
        "llama-70b: fsdp(16) x tp(8) = 128 ranks on 16 nodes (synthetic h100:16x8), plan sha256:"
    )
    assert [line.split()[:6] for line in lines if line.startswith("tp ")] == [
        ["tp", "8", "16", "nvlink", "450", "node"]
    ]
    assert "  node-0   [  0   1   2   3   4   5   6   7] fsdp 0" in lines
    assert "  node-15  [120 121 122 123 124 125 126 127] fsdp 15" in lines
    assert any(line.startswith("FITS: needs") for line in lines)
    assert "  - fsdp = 16: takes the rest of 128 GPUs / tp(8)" in lines


def test_several_groups_of_a_node_stand_side_by_side(capsys: Captured) -> None:
    run(["plan", "tiny-llama: TP2+SP+FSDP4", "--cluster", "h100:1x8"])
    assert (
        "  node-0  [0 1] fsdp 0   [2 3] fsdp 1   [4 5] fsdp 2   [6 7] fsdp 3"
        in capsys.readouterr().out
    )


def test_a_group_over_several_nodes_says_which_part_is_where(capsys: Captured) -> None:
    run(["plan", "llama-70b", "--cluster", "gb200:2x18x4", "--set", "parallelism=TP16+FSDP8"])
    assert "  node-1   [  4   5   6   7] fsdp 0 tp 4-7\n" in capsys.readouterr().out


def test_a_thousand_nodes_are_abbreviated_and_ascii(capsys: Captured) -> None:
    run(["plan", "llama-405b", "--cluster", "h100:2048x8"])
    out = capsys.readouterr().out
    assert out.isascii()
    assert "2,040 more nodes" in out
    assert len(out.splitlines()) < 70
    assert "1 worst" in out


def test_a_misfit_is_shown_with_what_would_fit_and_exits_0(capsys: Captured) -> None:
    assert run(["plan", "llama-3-8b: DP", "--cluster", "h100:1x8"]) == 0
    captured = capsys.readouterr()
    assert "DOES NOT FIT: needs 176 GB per rank of 77.0 GB usable" in captured.out
    assert "Would fit: `--set parallelism=FSDP8`" in captured.out
    assert "note: training defaults of llama-3-8b" in captured.err


def test_what_cannot_be_placed_exits_4_with_a_hint(capsys: Captured) -> None:
    assert run(["plan", "llama-70b", "--cluster", "l40s:16x8"]) == 4
    error = capsys.readouterr().err
    assert error.startswith("error: tp(8) needs NVLink")
    assert "hint: " in error


def test_a_batch_that_does_not_divide_exits_2(capsys: Captured) -> None:
    assert run(["plan", "llama-3-70b: FSDP", "--cluster", "h100:12x8"]) == 2
    assert "hint: set train.global_batch to 480 or 576" in capsys.readouterr().err


def test_this_machine_is_the_default(capsys: Captured) -> None:
    assert run(["plan", "tiny-llama"]) == 0
    assert "tiny-llama: fsdp(2) x tp(2) = 4 ranks on 1 node (local)" in capsys.readouterr().out


def test_an_unknown_format_is_refused(capsys: Captured) -> None:
    assert run(["plan", "tiny-llama", "-o", "xml"]) == 2
    assert "no such format here" in capsys.readouterr().err


def test_a_reader_that_leaves_early_is_no_failure() -> None:
    command = [sys.executable, "-m", "parctl", "plan", "gpt3-175b", "--cluster", "h100:128x8"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        _, errors = process.communicate()
    assert (process.returncode, errors) == (0, b"")


def test_a_piped_reason_is_one_line(capsys: Captured) -> None:
    run(["plan", "llama-70b", "--cluster", "h100:16x8"])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "tp = 8: the" in line)
    assert line.endswith("does not fit 77.0 GB at any degree")


@pytest.mark.parametrize("width", [60, 80])
def test_a_narrow_terminal_cuts_no_number_apart(width: int) -> None:
    plan = make_plan(load_recipe("gpt3-175b"), parse_cluster("h100:128x8"))
    console = Console(file=io.StringIO(), width=width, force_terminal=True, no_color=True)
    with console.capture() as captured:
        show_plan(plan, console)
    lines = [
        " ".join(re.sub(r"\x1b\[\d*m", "", line).split()) for line in captured.get().split("\n")
    ]
    assert "tp 8 128 nvlink 450 node 1 406 GB" in lines
    assert "STAGE 0 worst 7" in lines
    assert "WEIGHTS 11.3 GB 11.2 GB" in lines
    assert "TOTAL PER RANK 57.9 GB 52.7 GB" in lines


def test_an_axis_that_ep_left_nothing_of_is_not_shown(capsys: Captured) -> None:
    run(["plan", "deepseek-v3", "--cluster", "h100:128x8"])
    assert "\nedp " not in capsys.readouterr().out


def test_a_search_ranks_and_says_how_to_use_the_first(capsys: Captured) -> None:
    words = ["plan", "llama-70b", "--cluster", "h100:16x8", "--search", "--top", "2"]
    assert run([*words, "--keep", "tp=8", "--keep", "pp=1"]) == 0
    out = capsys.readouterr().out
    assert out.isascii()
    lines = out.splitlines()
    assert [line[:1] for line in lines if line[:1] in ("1", "2")] == ["1", "2"]
    assert "The best with other axes:" in out
    option = lines[-1].strip()
    assert option.startswith("--set")
    words = ["plan", "llama-70b", "--cluster", "h100:16x8", *option.replace("'", "").split()]
    assert run(words) == 0
    assert "FITS" in capsys.readouterr().out


def test_a_search_is_a_document_too(capsys: Captured) -> None:
    words = ["plan", "llama-3-8b: FSDP", "--cluster", "h100:1x8", "--search", "-o", "json"]
    assert run([*words, "--max-gpus", "4", "--keep", "recompute=full"]) == 0
    document = json.loads(capsys.readouterr().out)
    first = document["ranked"][0]
    assert first["num_devices"] == 4 and first["choice"]["recompute"] == "full"
    assert sum(first["step_parts_s"].values()) == pytest.approx(first["step_time_s"])
    assert {form["axes"] for form in document["model_axes"]} >= {"TP", "PP", "data axes only"}


def test_a_search_where_nothing_fits_says_what_is_missing(capsys: Captured) -> None:
    words = ["plan", "llama-3-70b: FSDP", "--cluster", "h100:1x4", "--search"]
    assert run([*words, "--set", "train.global_batch=4"]) == 0
    assert "Nothing fits llama-3-70b" in capsys.readouterr().out


def test_keep_without_a_search_is_refused(capsys: Captured) -> None:
    assert run(["plan", "llama-70b", "--cluster", "h100:16x8", "--keep", "tp=8"]) == 2
    assert "hint: add `--search`" in capsys.readouterr().err


def test_tokens_are_priced(capsys: Captured) -> None:
    words = ["plan", "llama-70b", "--cluster", "h100:16x8", "--tokens", "15T"]
    assert run([*words, "--set", "launch.price_per_gpu_hour=2.5"]) == 0
    (line,) = (row for row in capsys.readouterr().out.splitlines() if row.startswith("For "))
    assert re.fullmatch(
        r"For 15T tokens \(3,576,279 steps\): 1,\d{3} days, 5,\d{3},\d{3} GPU-hours, "
        r"cost 14,\d{3},\d{3}; restarts not counted\.",
        line,
    )


def test_bars_show_memory_and_the_step(capsys: Captured) -> None:
    run(["plan", "llama-3-8b: DP", "--cluster", "h100:1x8"])
    out = capsys.readouterr().out
    assert re.search(r"  0  \[W+G+O+\|O+C+A+>\] 176 GB, 228% of what is usable", out)
    assert re.search(r"  compute +[\d.]+ s +\d+%  #+", out)


def test_predicted_and_measured_stand_side_by_side() -> None:
    row = {
        "step_time_s": 2.2,
        "predicted_step_time_s": 2.0,
        "mem_peak_bytes": 60_000_000_000,
        "predicted_mem_bytes": 50_000_000_000,
    }
    assert predictions(row) == [
        ("predicted", "a step of 2 s; measured: 2.2 s (+10%)"),
        ("memory", "50.0 GB; measured: 60.0 GB (+20%)"),
    ]
    assert predictions({"step_time_s": 2.2, "predicted_step_time_s": None}) == []
