"""A supervisor is started before its run is known: it takes what comes, or leaves no trace."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.launcher.plans import script_plan
from tests.launcher.runs import BACKEND, directory, launch, python, running, until

from parctl.errors import BackendError
from parctl.launcher import early, handover, local
from parctl.launcher.backend import State
from parctl.launcher.places import config_file, runs_root
from parctl.launcher.waiting import wait_for
from parctl.planner.make import make_plan
from parctl.recipes.loader import load_recipe
from parctl.topology.discover import discover

SLEEP = python("import time", "print('here', flush=True)", "time.sleep(60)")
STAND_BY = """\
import time
from parctl.launcher.local import LocalBackend
with LocalBackend().standby():
    print("standing by", flush=True)
    time.sleep(60)
"""


def supervisors() -> set[int]:
    return started(b"parctl.launcher.supervisor")


def fork_servers() -> set[int]:
    return started(b"parctl.runtime.forkserver")


def started(module: bytes) -> set[int]:
    """The pids of who runs a module for this test, by its own state directory."""
    mark = f"\0XDG_STATE_HOME={os.environ['XDG_STATE_HOME']}\0".encode()
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
                environment = b"\0" + (entry / "environ").read_bytes()
            except OSError:
                continue
            if b"\0" + module + b"\0" in command and mark in environment:
                found.add(int(entry.name))
    return found


def test_a_supervisor_that_stands_by_is_the_one_that_takes_the_run() -> None:
    with BACKEND.standby():
        until(supervisors)
        standing = supervisors()
        launch(script_plan(SLEEP, axes={"dp": 1}))
        assert os.getsid(directory().read().owner.pid) in standing
    running()  # the end of the `with` is nothing to a run that was submitted
    BACKEND.cancel("probe-1")
    until(lambda: not supervisors())


def test_a_supervisor_that_gets_no_run_leaves_nothing() -> None:
    with BACKEND.standby():
        until(fork_servers)
        (log,) = runs_root().iterdir()
        assert log.name.startswith(".ahead-")
    assert supervisors() == fork_servers() == set()
    assert list(runs_root().iterdir()) == []


def test_a_bad_recipe_and_a_killed_launcher_leave_no_supervisor() -> None:
    words = [sys.executable, "-m", "parctl", "launch", "no-such-recipe"]
    assert subprocess.run(words, capture_output=True).returncode == 2
    assert supervisors() == fork_servers() == set()

    with subprocess.Popen([sys.executable, "-c", STAND_BY], stdout=subprocess.PIPE) as launcher:
        assert launcher.stdout
        launcher.stdout.readline()
        until(fork_servers)
        launcher.send_signal(signal.SIGKILL)
    until(lambda: not supervisors() | fork_servers())
    assert list(runs_root().iterdir()) == []


def test_a_recipe_whose_ranks_need_another_environment_gets_a_fork_server_of_its_own() -> None:
    for changes in ("launch.env={MARK: here}", "launch.secrets={MARK: {from_env: HOME}}"):
        plan = make_plan(load_recipe("tiny-llama", [changes]), discover(None, num_devices=4))
        with BACKEND.standby():
            until(fork_servers)
            (ahead,) = fork_servers()
            with BACKEND.head_start(plan.recipe, "probe-1"):
                until(lambda: not fork_servers())
                assert list(runs_root().iterdir()) == []
                launch(plan)
                until(fork_servers)
                assert fork_servers() != {ahead}
        BACKEND.cancel("probe-1")
        BACKEND.delete("probe-1")


def test_a_script_is_started_with_no_fork_server() -> None:
    with BACKEND.standby():
        until(fork_servers)
        plan = script_plan(SLEEP, axes={"dp": 1})
        with BACKEND.head_start(plan.recipe, "probe-1"):
            launch(plan)
        running()
        assert fork_servers() == set()
    BACKEND.cancel("probe-1")


def test_a_second_run_of_one_back_end_gets_a_supervisor_of_its_own() -> None:
    plan = script_plan(python("pass"), axes={"dp": 1})
    with BACKEND.standby():
        for run_id in ("probe-1", "probe-2"):
            launch(plan, run_id)
    for run_id in ("probe-1", "probe-2"):
        assert wait_for(BACKEND, run_id, timeout_s=10).state is State.SUCCEEDED


def test_an_interrupt_as_the_run_comes_into_being_leaves_it_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rename = os.rename

    def rename_then_interrupt(*paths: Any) -> None:
        rename(*paths)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(os, "rename", rename_then_interrupt)
    with BACKEND.standby(), pytest.raises(KeyboardInterrupt):
        launch(script_plan(SLEEP, axes={"dp": 1}))
    assert BACKEND.status("probe-1").state is State.CANCELLED
    assert [path.name for path in runs_root().iterdir()] == ["probe-1"]
    assert supervisors() == fork_servers() == set()


def test_what_goes_wrong_before_the_run_is_known_is_said_by_the_launcher(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'parctl.launcher.supervisor' in sys.orig_argv:\n"
        "    sys.exit('no supervisor today')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(BackendError, match="the supervisor of run `probe-1` did not start"):
        launch(script_plan(["true"], axes={"dp": 1}))
    assert "no supervisor today" in capfd.readouterr().err


def test_torch_is_on_its_way_before_the_supervisor_imports_what_it_needs_later() -> None:
    code = (
        "import json, sys, parctl.launcher.supervisor\n"
        "print(json.dumps([name for name in sys.modules if name.startswith('parctl.')]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert set(json.loads(done.stdout)) == {
        "parctl._version",
        "parctl.launcher",
        "parctl.launcher.spawn",
        "parctl.launcher.supervisor",
    }


def test_a_launch_starts_its_supervisor_before_it_reads_its_words() -> None:
    early.begin(["tiny-llama", "--set", "train.steps=1"])
    until(fork_servers)
    standing = supervisors()
    with BACKEND.standby():
        assert supervisors() == standing
    assert supervisors() == fork_servers() == set()


def test_an_impatient_user_leaves_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any) -> None:
        local_hand_over(*arguments)
        signal.raise_signal(signal.SIGINT)

    def once_more(run_id: str) -> None:
        signal.raise_signal(signal.SIGINT)
        cancel(run_id)

    local_hand_over, cancel = handover.hand_over, BACKEND.cancel
    monkeypatch.setattr(local, "hand_over", interrupted)
    monkeypatch.setattr(BACKEND, "cancel", once_more)
    with pytest.raises(KeyboardInterrupt):
        launch(script_plan(["sleep", "60"], axes={"dp": 1}))
    assert BACKEND.status("probe-1").state is State.CANCELLED
    assert supervisors() == set()
    with pytest.raises(KeyboardInterrupt):  # as before
        signal.raise_signal(signal.SIGINT)


def test_a_log_that_somebody_removes_before_there_is_a_run_is_no_loss() -> None:
    with BACKEND.standby():
        until(fork_servers)
        (log,) = runs_root().iterdir()
        log.unlink()
        launch(
            make_plan(load_recipe("tiny-llama", ["train.steps=1"]), discover(None, num_devices=4))
        )
    assert wait_for(BACKEND, "probe-1", timeout_s=60).state is State.SUCCEEDED


def as_one_that(does: str, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run a parctl command whose parent has done something to it before."""
    command = [sys.executable, "-m", "parctl", *words]
    code = f"import os, resource, signal; {does}; os.execv({command[0]!r}, {command})"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_a_launch_whose_parent_ignores_the_ends_of_children() -> None:
    ignoring = "signal.signal(signal.SIGCHLD, signal.SIG_IGN)"
    assert "no shipped recipe" in as_one_that(ignoring, "launch", "no-such-recipe").stderr
    for changes in ("train.steps=1", "launch.env={MARK: here}"):
        words = ("launch", "tiny-llama", "--run-id", "probe-1", "--set", "train.steps=1")
        done = as_one_that(ignoring, *words, "--set", changes)
        assert (done.returncode, done.stdout) == (0, "probe-1\n"), done.stderr
        assert wait_for(BACKEND, "probe-1", timeout_s=60).state is State.SUCCEEDED
        BACKEND.delete("probe-1")


def test_a_launch_that_may_open_few_files_says_so_and_leaves_nothing_ahead() -> None:
    for most in (6, 7, 8, 10):
        limit = f"resource.setrlimit(resource.RLIMIT_NOFILE, ({most}, {most}))"
        done = as_one_that(limit, "launch", "tiny-llama", "--run-id", f"few-{most}")
        assert done.returncode != 0
        assert "Traceback" not in done.stderr
        until(lambda: not supervisors() | fork_servers())
        assert not list(runs_root().glob(".ahead-*"))
        assert "Too many open files" in (runs_root() / f"few-{most}/supervisor.log").read_text()


def test_a_state_directory_may_have_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    launch(script_plan(["true"], axes={"dp": 1}))
    assert wait_for(BACKEND, "probe-1", timeout_s=20).state is State.SUCCEEDED


@pytest.mark.parametrize(
    "words", [["--help"], ["x", "--dry-run"], ["x", "-b", "ray"], ["x", "-bray"], ["--backend=ray"]]
)
def test_a_launch_to_elsewhere_starts_none(words: list[str]) -> None:
    early.begin(words)
    assert supervisors() == set()


@pytest.mark.parametrize("variable", sorted(early.SETTINGS))
def test_nor_does_one_whose_settings_say_where(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "local")
    early.begin(["tiny-llama"])
    monkeypatch.delenv(variable)
    config_file().parent.mkdir(parents=True, exist_ok=True)
    config_file().write_text("{}")
    early.begin(["tiny-llama"])
    assert supervisors() == set()


@pytest.mark.parametrize("words", [["--no-such-flag"], ["tiny-llama", "--cluster"], []])
def test_words_that_mean_nothing_leave_nothing(words: list[str]) -> None:
    command = [sys.executable, "-m", "parctl", "launch", *words]
    assert subprocess.run(command, capture_output=True).returncode == 2
    assert supervisors() == fork_servers() == set()
    assert list(runs_root().iterdir()) == []
