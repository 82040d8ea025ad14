"""`parctl simulate`: what a person and a program read."""

import json

import pytest

from parctl.cli.main import run

Captured = pytest.CaptureFixture[str]
JOB = ["simulate", "llama-70b: TP8+SP+FSDP4", "--cluster", "h100:5x8"]
SPARE = ["--set", "placement.spares=1", "--set", "checkpoint.every=50"]


def test_the_whole_path_is_printed(capsys: Captured) -> None:
    words = [*JOB, *SPARE, "--fail-node", "1@77", "--mtbf-hours", "6000"]
    assert run([*words, "--set", "launch.retries=3"]) == 0
    shown = capsys.readouterr().out

    assert "fsdp(4) x tp(8) = 32 ranks on 4 nodes" in shown
    assert "FITS" in shown and "BACK END" in shown
    assert "NODE LOSS: node-1 at step 77 takes ranks 8 to 15 with it." in shown
    assert "Broken: 8 of 8 fsdp groups, 1 of 4 tp groups; all 32 ranks stop" in shown
    assert "Lost: 26 steps = " in shown and "the checkpoint of step 50." in shown
    assert "launch.retries = 3: the run survives 3 such losses." in shown
    assert "there, but not planned: node-4" in shown
    assert "GOODPUT: one of 4 nodes fails every 62 days." in shown
    assert "Assumed: steps go on 300 s after a failure" in shown


def test_as_json_it_holds_the_same(capsys: Captured) -> None:
    assert (
        run([*JOB, *SPARE, "--fail-node", "node-1@77", "--mtbf-hours", "6000", "-o", "json"]) == 0
    )
    document = json.loads(capsys.readouterr().out)

    assert (document["ranks"], document["nodes"]) == (32, 4)
    assert document["node_loss"]["lost_steps"] == 26
    assert document["node_loss"]["difference"]["new_nodes"] == ["node-4"]
    assert document["goodput"]["failures"]["mtbf_s"] == 6000 * 3600 / 4
    assert {each["backend"] for each in document["manifests"]} == {"kubernetes", "ray", "local"}


def test_a_job_that_does_not_fit_exits_as_its_launch_would(capsys: Captured) -> None:
    assert run(["simulate", "llama-70b: DP8", "--cluster", "h100:1x8", "-b", "local"]) == 3
    assert "GATE: `parctl launch` refuses it (exit 3)." in capsys.readouterr().out


def test_a_wrong_failure_exits_with_2(capsys: Captured) -> None:
    assert run([*JOB, "--fail-node", "17"]) == 2
    assert "expected NODE@STEP" in capsys.readouterr().err


def test_without_spares_it_says_how_to_keep_one(capsys: Captured) -> None:
    words = ["simulate", "llama-70b: TP8+SP+FSDP4", "--cluster", "h100:4x8", "-b", "local"]
    assert run([*words, "--fail-node", "0@1"]) == 0
    shown = capsys.readouterr().out
    assert "Waits until node-0 or another node is there." in shown
    assert "placement.spares=1" in shown and "the beginning, since nothing was saved" in shown
