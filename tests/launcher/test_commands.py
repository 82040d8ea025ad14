"""The commands about runs, as a person calls them: what they print, where, and how they exit."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tests.launcher.runs import BACKEND, directory, left, run_lightly, running, until

from parctl.cli.main import run as parctl
from parctl.launcher.backend import State
from parctl.launcher.places import runs_root

Capture = pytest.CaptureFixture[str]
# a sitecustomize: the supervisor knows its run, and takes its time over becoming the owner
SLOW_TO_TAKE_OVER = """\
import sys, time

class Slow:
    def find_spec(self, name, path, target=None):
        if name == "parctl.launcher.supervision":
            time.sleep(1.5)

sys.meta_path.insert(0, Slow())
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    """Two ranks that say hello, rank 0 first, and do as a file says: sleep, or exit with a code."""
    program = "\n".join(
        (
            "import os, sys, time",
            "said = os.environ['PARCTL_RUN_ID'] + '-' + os.environ['PARCTL_ATTEMPT']",
            f"said = os.path.join('{tmp_path}', said)",
            "while os.environ['RANK'] != '0' and not os.path.exists(said): time.sleep(0.01)",
            "print('hello from', os.environ['RANK'], flush=True)",
            "open(said, 'w').close()",
            f"code = open('{tmp_path}/code').read()",
            "time.sleep(60) if code == 'sleep' else sys.exit(int(code))",
        )
    )
    file = tmp_path / "hello.yaml"
    document = {
        "version": 1,
        "name": "hello",
        "task": "script",
        "parallelism": "DP2",
        "script": {"command": [sys.executable, "-S", "-c", program]},
    }
    file.write_text(yaml.safe_dump(document))
    (tmp_path / "code").write_text("0")
    return str(file)


def does(recipe: str, code: str) -> None:
    Path(recipe).with_name("code").write_text(code)


def test_launch_prints_the_id_alone_on_stdout(recipe: str, capsys: Capture) -> None:
    assert parctl(["launch", recipe]) == 0
    out, err = capsys.readouterr()
    run_id = out.strip()

    assert out == f"{run_id}\n"
    assert run_id.startswith("hello-")
    assert f"`parctl logs {run_id} --follow`" in err
    assert parctl(["wait", run_id]) == 0
    assert capsys.readouterr().err == f"{run_id} succeeded\n"


@pytest.mark.parametrize("output", ["yaml", "json"])
def test_a_dry_run_prints_what_would_be_submitted_and_starts_nothing(
    recipe: str, capsys: Capture, output: str
) -> None:
    words = ["launch", recipe, "--run-id", "r1", "--set", "launch.retries=2"]
    assert parctl([*words, "--dry-run", "-o", output]) == 0
    shown = capsys.readouterr().out
    assert not runs_root().exists()

    assert parctl(words) == 0
    kept = directory("r1").manifest.read_text()
    if output == "yaml":
        assert shown == kept
    else:
        assert json.loads(shown) == yaml.safe_load(kept)


def test_follow_shows_rank_0_and_exits_as_the_run_does(recipe: str, capfd: Capture) -> None:
    assert parctl(["launch", recipe, "--run-id", "good", "--follow"]) == 0
    out, err = capfd.readouterr()
    assert out == "good\nhello from 0\n"
    assert "good succeeded after" in err

    does(recipe, "3")
    assert parctl(["launch", recipe, "--run-id", "bad", "--follow"]) == 1
    out, err = capfd.readouterr()
    assert out == "bad\nhello from 0\n"
    assert "error: run `bad` failed: rank " in err
    assert "failed with exit 3" in err


def test_interrupting_follow_cancels_the_run(recipe: str) -> None:
    does(recipe, "sleep")
    words = [sys.executable, "-m", "parctl", "launch", recipe, "--run-id", "r1", "--follow"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as follower:
        assert follower.stdout is not None
        assert [follower.stdout.readline() for _ in range(2)] == [b"r1\n", b"hello from 0\n"]
        follower.send_signal(signal.SIGINT)
        _, err = follower.communicate(timeout=10)

    assert follower.returncode == 130
    assert b"error: run `r1` was cancelled" in err
    assert BACKEND.status("r1").state is State.CANCELLED
    assert left("r1") == []


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1), (0, 1, 2)])
def test_a_launch_needs_no_open_stdin_stdout_or_stderr(
    closed: tuple[int, ...], recipe: str
) -> None:
    words = [sys.executable, "-m", "parctl", "launch", recipe, "--run-id", "r1", "--follow"]
    closing = " ".join(f"{fd}>&-" for fd in closed)
    command = ["sh", "-c", f'exec "$@" {closing}', "sh", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0
    if 1 not in closed:
        assert done.stdout.splitlines() == ["r1", "hello from 0"]
    assert BACKEND.status("r1").state is State.SUCCEEDED
    assert left("r1") == []


def test_closing_the_terminal_of_a_follower_leaves_the_run_alone(recipe: str) -> None:
    does(recipe, "sleep")
    session, terminal = pty.fork()
    if session == 0:
        words = ["parctl", "launch", recipe, "--run-id", "r1", "--follow"]
        os.execv(sys.executable, [sys.executable, "-m", *words])
    said = b""
    while b"hello from 0" not in said:
        said += os.read(terminal, 1024)
    os.close(terminal)
    os.waitpid(session, 0)

    time.sleep(0.2)
    assert BACKEND.status("r1").state is State.RUNNING
    BACKEND.cancel("r1")


def test_logs_are_prefixed_unless_one_rank_is_asked_for(recipe: str, capsys: Capture) -> None:
    parctl(["launch", recipe, "--run-id", "r1"])
    parctl(["wait", "r1"])
    capsys.readouterr()

    assert parctl(["logs", "r1"]) == 0
    lines = sorted(capsys.readouterr().out.splitlines())
    assert lines == ["[rank 0] hello from 0", "[rank 1] hello from 1"]
    assert parctl(["logs", "r1", "--rank", "1", "--tail", "1", "--follow"]) == 0
    assert capsys.readouterr().out == "hello from 1\n"
    assert parctl(["logs", "r1", "--since", "1h", "--rank", "0"]) == 0
    assert capsys.readouterr().out == "hello from 0\n"
    assert parctl(["logs", "r1", "--since", "yesterday"]) == 2
    assert parctl(["logs", "r1", "--rank", "2"]) == 2


def test_status_and_list_show_the_run(recipe: str, capsys: Capture) -> None:
    does(recipe, "7")
    parctl(["launch", recipe, "--run-id", "r1"])
    assert parctl(["wait", "r1"]) == 1
    capsys.readouterr()

    assert parctl(["status", "r", "-o", "wide"]) == 0  # the beginning of an id is enough
    out = capsys.readouterr().out
    assert "state:     Failed\n" in out
    assert "RANK  NODE" in out
    assert parctl(["status", "r1", "-o", "json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["state"], status["verdict"]["cause"]) == ("Failed", "exit 7")
    assert parctl(["list"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["RUN", "STATE", "STEP", "RESTARTS", "RANKS", "AGE", "BACKEND"]
    assert row.split()[:4] == ["r1", "Failed", "0", "2"]
    assert parctl(["list", "-o", "name"]) == 0
    assert capsys.readouterr().out == "r1\n"
    assert parctl(["why", "r1"]) == 0
    assert "failed with exit 7" in capsys.readouterr().out
    assert parctl(["list", "-o", "xml"]) == 2


def test_wait_gives_up_after_its_time_and_cancel_says_what_it_did(
    recipe: str, capsys: Capture
) -> None:
    does(recipe, "sleep")
    parctl(["launch", recipe, "--run-id", "r1"])
    running("r1")
    assert parctl(["wait", "r1", "--timeout", "0.2"]) == 124
    assert parctl(["delete", "r1"]) == 2
    capsys.readouterr()

    assert parctl(["cancel", "r1"]) == 0
    assert capsys.readouterr().err == "r1 is Cancelled\n"
    assert parctl(["cancel", "r1"]) == 0
    assert capsys.readouterr().err == "r1 had ended already: Cancelled\n"
    assert parctl(["wait", "r1"]) == 130
    assert parctl(["delete", "r1"]) == 0
    assert parctl(["status", "r1"]) == 2
    assert "hint: `parctl list` shows the runs" in capsys.readouterr().err


def test_prune_deletes_ended_runs_only(recipe: str, capsys: Capture) -> None:
    for run_id in ("one", "two"):
        parctl(["launch", recipe, "--run-id", run_id])
        parctl(["wait", run_id])
    does(recipe, "sleep")
    parctl(["launch", recipe, "--run-id", "busy"])
    capsys.readouterr()

    assert parctl(["prune"]) == 2
    capsys.readouterr()
    assert parctl(["prune", "--runs", "1", "--dry-run"]) == 0
    assert capsys.readouterr().out == "one\n"
    assert parctl(["prune", "--runs", "0"]) == 0
    assert capsys.readouterr().out == "one\ntwo\n"
    assert [run.run_id for run in BACKEND.list()] == ["busy"]
    BACKEND.cancel("busy")


def test_metrics_are_printed_in_three_ways(recipe: str, capsys: Capture) -> None:
    parctl(["launch", recipe, "--run-id", "r1"])
    parctl(["wait", "r1"])
    assert parctl(["metrics", "r1"]) == 0
    assert "r1 has no metrics yet" in capsys.readouterr().err
    directory("r1").metrics.write_text(
        '{"run": "r1", "attempt": 1, "step": 1, "loss": 5.25, "mfu": null}\n'
        '{"run": "r1", "attempt": 1, "step": 2, "loss": 4.125, "mfu": null}\n'
    )

    assert parctl(["metrics", "r1"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:3] == ["1", "5.25", "--"]
    assert parctl(["metrics", "r1", "-o", "csv"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "run,attempt,step,loss,mfu",
        "r1,1,1,5.25,",
        "r1,1,2,4.125,",
    ]
    assert parctl(["metrics", "r1", "-o", "json"]) == 0
    assert [row["step"] for row in json.loads(capsys.readouterr().out)] == [1, 2]


@pytest.mark.parametrize("words", [["list"], ["status", "r1"], ["logs", "r1"]])
def test_looking_at_runs_is_cheap(recipe: str, words: list[str]) -> None:
    parctl(["launch", recipe, "--run-id", "r1"])
    until(lambda: BACKEND.status("r1").state.ended)
    # pydantic is not among them: Typer itself imports it to parse arguments
    heavy = {"torch", "numpy", "rich", "ray", "kubernetes", "yaml"}
    assert run_lightly(words, heavy) == (0, "")


@pytest.mark.parametrize("run_id", ["Bad", "a" * 41, "../x"])
def test_an_id_that_breaks_the_rules_exits_2(recipe: str, run_id: str, capsys: Capture) -> None:
    assert parctl(["launch", recipe, "--run-id", run_id]) == 2
    assert capsys.readouterr().err.startswith(f"error: run id `{run_id}` ")


def test_a_back_end_that_does_not_exist_exits_2(recipe: str, capsys: Capture) -> None:
    assert parctl(["launch", recipe, "-b", "slurm"]) == 2
    error = capsys.readouterr().err
    assert "there is no back end `slurm`" in error
    assert "one of local, ray, kubernetes" in error


def test_the_fields_of_status_are_those_that_are_documented(recipe: str, capsys: Capture) -> None:
    does(recipe, "3")
    parctl(["launch", recipe, "--run-id", "r1", "--follow"])
    capsys.readouterr()
    assert parctl(["status", "r1", "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)

    page = (Path(__file__).parents[2] / "docs" / "local.md").read_text()
    table = page.partition("### A run as data")[2].partition("## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    documented = [re.findall(r"`(\w+)`", row) for row in rows]
    names = [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert names == list(found)
    assert set(found["verdict"]) == set(documented[names.index("state") + 3]) - {"verdict"}
    assert set(found["ranks"][0]) <= set(documented[-2])


def test_torch_is_on_its_way_before_the_planner_is_imported() -> None:
    words = ["launch", "tiny-llama", "--dry-run"]
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "parctl", *words], capture_output=True, text=True
    )
    modules = [line.rpartition("|")[2].strip() for line in done.stderr.splitlines()]

    # the guard belongs to the back end, whose head start it is; the planner wants numpy
    assert modules.index("parctl.launcher.guard") < modules.index("numpy")


def test_a_launch_that_is_interrupted_before_it_printed_the_id_leaves_no_run_behind(
    recipe: str, tmp_path: Path
) -> None:
    does(recipe, "sleep")
    (tmp_path / "sitecustomize.py").write_text(SLOW_TO_TAKE_OVER)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    words = [sys.executable, "-m", "parctl", "launch", recipe, "--run-id", "r1"]
    with subprocess.Popen(words, env={**os.environ, "PYTHONPATH": path}) as launcher:
        until(directory("r1").state.exists)
        launcher.send_signal(signal.SIGINT)

    assert launcher.returncode == 130
    assert BACKEND.status("r1").state is State.CANCELLED
    assert left("r1") == []
