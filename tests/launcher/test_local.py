"""Local runs with real processes: what they are given, and what is kept of them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.launcher.plans import script_plan
from tests.launcher.runs import (
    BACKEND,
    command_lines,
    directory,
    launch,
    left,
    log,
    python,
    run,
    running,
    until,
)

from parctl.errors import BackendError, CannotPlaceError, UnknownRunError, UsageError
from parctl.launcher.backend import State
from parctl.launcher.places import runs_root

PRINT_ENVIRONMENT = python("import os, json; print(json.dumps(dict(os.environ)))")
SLEEP = python("import time", "print('up', flush=True)", "time.sleep(60)")


def test_a_script_succeeds_on_every_rank() -> None:
    status = run(
        script_plan(python("import os; print('I am', os.environ['RANK'])"), axes={"dp": 2})
    )

    assert status.state is State.SUCCEEDED
    assert status.verdict is None
    assert status.ended_unix is not None and status.ended_unix >= status.created_unix
    assert [rank.state for rank in status.ranks] == ["exited 0", "exited 0"]
    assert [log(rank) for rank in (0, 1)] == [["I am 0"], ["I am 1"]]


def test_ranks_get_the_environment_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "7")  # left over from whatever launched us
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    run(script_plan(PRINT_ENVIRONMENT, axes={"dp": 2, "tp": 2}, retries=3))

    environments = [json.loads(log(rank)[0]) for rank in range(4)]
    assert [environment["RANK"] for environment in environments] == ["0", "1", "2", "3"]
    last = environments[3]
    port = last["MASTER_PORT"]
    assert {key: last[key] for key in last if key.startswith(("GROUP_", "LOCAL_", "ROLE_"))} == {
        "LOCAL_RANK": "3",
        "LOCAL_WORLD_SIZE": "4",
        "GROUP_RANK": "0",
        "GROUP_WORLD_SIZE": "1",
        "ROLE_RANK": "3",
        "ROLE_NAME": "default",
        "ROLE_WORLD_SIZE": "4",
    }
    assert last["WORLD_SIZE"] == "4"
    assert last["MASTER_ADDR"] == "127.0.0.1"
    assert 1024 <= int(port) <= 65535
    assert all(environment["MASTER_PORT"] == port for environment in environments)
    assert last["OMP_NUM_THREADS"] == "1"
    assert last["TORCHELASTIC_RUN_ID"] == last["PARCTL_RUN_ID"] == "probe-1"
    assert last["TORCHELASTIC_RESTART_COUNT"] == "0"
    assert last["TORCHELASTIC_MAX_RESTARTS"] == "3"
    assert last["TORCHELASTIC_ERROR_FILE"].endswith("probe-1/errors/attempt-1/rank-3.json")
    assert last["PARCTL_ATTEMPT"] == "1"
    assert last["CUDA_VISIBLE_DEVICES"] == ""  # a plan for CPUs, also on a machine with GPUs


def test_gpus_are_masked_in_the_order_of_local_ranks() -> None:
    run(script_plan(PRINT_ENVIRONMENT, axes={"tp": 2}, kind="gpu"))

    environments = [json.loads(log(rank)[0]) for rank in (0, 1)]
    assert [rank["CUDA_VISIBLE_DEVICES"] for rank in environments] == ["0,1", "0,1"]
    assert environments[0]["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"  # in which NVML counts them


def test_what_the_user_exports_wins_over_our_defaults_and_the_recipe_over_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("COLOUR", "red")
    run(script_plan(PRINT_ENVIRONMENT, axes={"dp": 1}, env={"COLOUR": "blue"}))

    environment = json.loads(log(0)[0])
    assert (environment["OMP_NUM_THREADS"], environment["COLOUR"]) == ("3", "blue")


def test_a_script_runs_where_launch_was_called_unless_the_recipe_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    where = python("import os; print(os.getcwd())")
    run(script_plan(where, axes={"dp": 1}), "here")
    run(script_plan(where, axes={"dp": 1}, workdir="/"), "there")

    assert [log(0, "here"), log(0, "there")] == [[str(tmp_path)], ["/"]]


def test_a_file_in_the_working_directory_does_not_replace_a_module_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise RuntimeError('wrong json')")
    monkeypatch.chdir(tmp_path)

    assert run(script_plan(["true"], axes={"dp": 1})).state is State.SUCCEEDED


def test_what_is_rendered_is_what_is_kept_and_rendering_changes_nothing() -> None:
    plan = script_plan(["true"], axes={"dp": 2})
    first, second = BACKEND.render(plan, "probe-1"), BACKEND.render(plan, "probe-1")
    assert first.documents == second.documents
    assert not runs_root().exists()

    BACKEND.submit(first)
    text = yaml.safe_dump(first.documents[0], sort_keys=False, width=100)
    assert directory().manifest.read_text() == text
    assert json.loads(directory().plan.read_text()) == json.loads(json.dumps(plan.to_json()))


def test_the_same_run_twice_starts_once_and_another_plan_is_refused(tmp_path: Path) -> None:
    count = ["/bin/sh", "-c", f"echo x >> {tmp_path}/count"]
    plan = script_plan(count, axes={"dp": 1})
    run(plan)

    again = BACKEND.submit(BACKEND.render(plan, "probe-1"))
    assert not again.created
    assert (tmp_path / "count").read_text() == "x\n"
    with pytest.raises(UsageError, match="exists already with another plan"):
        launch(script_plan(count, axes={"dp": 2}))


def test_concurrent_launches_of_one_id_start_it_once(tmp_path: Path) -> None:
    program = "\n".join(
        [
            "import sys",
            "from tests.launcher.plans import script_plan",
            "from tests.launcher.runs import BACKEND",
            f"count = ['/bin/sh', '-c', 'echo x >> {tmp_path}/count']",
            "plan = script_plan(count, axes={'dp': 1})",
            "print(BACKEND.submit(BACKEND.render(plan, 'probe-1')).created)",
        ]
    )
    root = Path(__file__).parents[2]
    launchers = [
        subprocess.Popen([sys.executable, "-c", program], cwd=root, stdout=subprocess.PIPE)
        for _ in range(6)
    ]
    answers = sorted(launcher.communicate()[0] for launcher in launchers)

    assert answers == [b"False\n"] * 5 + [b"True\n"]
    until(lambda: BACKEND.status("probe-1").state is State.SUCCEEDED)
    assert (tmp_path / "count").read_text() == "x\n"


def test_ten_readers_never_see_half_a_state() -> None:
    fail = python(
        "import os, sys, time",
        "while not os.path.exists(os.environ['PARCTL_RUN_DIR'] + '/go'): time.sleep(0.01)",
        "sys.exit(1)",
    )
    launch(script_plan(fail, axes={"dp": 2}, retries=30))
    program = "\n".join(
        [
            "from tests.launcher.runs import BACKEND",
            "print('ready', flush=True)",
            "seen = 0",
            "while not (status := BACKEND.status('probe-1')).state.ended:",
            "    assert [run.run_id for run in BACKEND.list()] == ['probe-1']",
            "    seen += 1",
            "print(status.state, status.restarts, seen > 3)",
        ]
    )
    root = Path(__file__).parents[2]
    readers = [
        subprocess.Popen([sys.executable, "-c", program], cwd=root, stdout=subprocess.PIPE)
        for _ in range(10)
    ]
    for reader in readers:
        assert reader.stdout is not None and reader.stdout.readline() == b"ready\n"
    (directory().path / "go").touch()
    assert [reader.communicate()[0] for reader in readers] == [b"Failed 30 True\n"] * 10


def test_a_secret_reaches_the_ranks_and_no_file_and_no_command_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    canary = "canary-8c1f05d2"
    monkeypatch.setenv("VAULT_TOKEN", canary)
    show = python(
        "import os, time",
        "print(os.environ['TOKEN'] == os.environ['VAULT_TOKEN'], flush=True)",
        "time.sleep(60)",
    )
    plan = script_plan(show, axes={"dp": 2}, secrets={"TOKEN": "VAULT_TOKEN"})
    launch(plan)
    running()
    lines = command_lines()
    BACKEND.cancel("probe-1")

    assert [log(rank) for rank in (0, 1)] == [["True"], ["True"]]
    assert not [line for line in lines if canary.encode() in line]
    files = [path for path in directory().path.rglob("*") if path.is_file()]
    assert len(files) >= 7
    assert not [path for path in files if canary.encode() in path.read_bytes()]


def test_a_secret_that_a_failing_rank_prints_stays_out_of_the_verdict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VAULT_TOKEN", "canary-8c1f05d2")
    fail = python("import os", "raise ValueError('bad token ' + os.environ['TOKEN'])")
    status = run(script_plan(fail, axes={"dp": 1}, secrets={"TOKEN": "VAULT_TOKEN"}))

    assert status.verdict is not None
    assert status.verdict.cause == "ValueError: bad token ********"
    for file in (directory().state, directory().events, directory().supervisor_log):
        assert "canary-8c1f05d2" not in file.read_text()


def test_a_secret_that_is_not_set_is_refused_before_anything_starts() -> None:
    plan = script_plan(["true"], axes={"dp": 1}, secrets={"TOKEN": "VAULT_TOKEN"})
    with pytest.raises(UsageError, match="TOKEN needs `VAULT_TOKEN`: not set"):
        launch(plan)
    assert BACKEND.list() == []


def test_a_recipe_cannot_set_what_parctl_sets() -> None:
    with pytest.raises(UsageError, match="sets `RANK`, `MASTER_PORT`, which parctl sets itself"):
        launch(script_plan(["true"], axes={"dp": 1}, env={"RANK": "0", "MASTER_PORT": "1"}))


def test_a_plan_for_two_nodes_is_refused() -> None:
    with pytest.raises(CannotPlaceError, match="uses 2 nodes, and a local run has one"):
        launch(script_plan(["true"], axes={"dp": 2}, nodes=("node-0", "node-1")))


def test_a_state_directory_that_cannot_be_written_is_an_error_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with pytest.raises(BackendError, match=r"cannot write the run directory .*: Not a dir"):
        launch(script_plan(["true"], axes={"dp": 1}))


def test_a_run_outlives_a_state_that_cannot_be_written_for_a_while() -> None:
    wait = python(
        "import os, time",
        "print('up', flush=True)",
        "while not os.path.exists(os.environ['PARCTL_RUN_DIR'] + '/go'): time.sleep(0.01)",
        "os._exit(0)",
    )
    launch(script_plan(wait, axes={"dp": 1}))
    running()
    run_directory = directory()
    # as on a full disk: the new state cannot be put in the old one's place
    kept = run_directory.state.read_text()
    run_directory.state.unlink()
    run_directory.state.mkdir()
    (run_directory.path / "go").touch()
    until(lambda: "cannot write the state" in run_directory.supervisor_log.read_text())
    run_directory.state.rmdir()
    run_directory.state.write_text(kept)

    until(lambda: BACKEND.status("probe-1").state is State.SUCCEEDED)


def test_unknown_runs_and_ranks_are_usage_errors() -> None:
    with pytest.raises(UnknownRunError, match="there is no run `probe-9`"):
        BACKEND.status("probe-9")
    with pytest.raises(UnknownRunError):
        BACKEND.cancel("../probe-1")
    run(script_plan(["true"], axes={"dp": 2}))
    with pytest.raises(UsageError, match="has no rank 2") as refused:
        BACKEND.logs("probe-1", rank=2, since=None, tail=None, follow=False)
    assert refused.value.hint == "its ranks are 0 to 1"


def test_a_running_run_is_not_deleted_and_an_ended_one_leaves_nothing() -> None:
    launch(script_plan(SLEEP, axes={"dp": 1}))
    running()
    with pytest.raises(UsageError, match="run `probe-1` is Running"):
        BACKEND.delete("probe-1")

    BACKEND.cancel("probe-1")
    BACKEND.delete("probe-1")
    assert list(runs_root().iterdir()) == []
    assert BACKEND.list() == []


def test_runs_are_listed_newest_first() -> None:
    for run_id in ("one", "two", "three"):
        run(script_plan(["true"], axes={"dp": 1}), run_id)
    assert [status.run_id for status in BACKEND.list()] == ["three", "two", "one"]


def test_a_program_that_does_not_exist_is_named() -> None:
    status = run(script_plan(["no-such-program-here"], axes={"dp": 2}))

    assert status.state is State.FAILED
    assert status.verdict is not None
    assert "No such file or directory: 'no-such-program-here'" in status.verdict.sentence
    assert status.verdict.fix == "check that `no-such-program-here` exists where the ranks run"
    assert left() == []


def test_a_run_that_takes_too_long_fails() -> None:
    status = run(script_plan(SLEEP, axes={"dp": 2}, timeout_s=0.5))

    assert status.state is State.FAILED
    assert status.verdict is not None
    assert status.verdict.sentence == "the run took longer than launch.timeout_s = 0.5 s"
    assert left() == []


def test_the_supervisor_is_small() -> None:
    launch(script_plan(SLEEP, axes={"dp": 1}))
    running()
    owner = directory().read().owner.pid
    maps = Path(f"/proc/{owner}/maps").read_text()
    threads = os.listdir(f"/proc/{owner}/task")
    BACKEND.cancel("probe-1")

    assert len(threads) == 1
    for heavy in ("torch", "numpy", "pydantic"):
        assert heavy not in maps


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ('{"schema": 2}', "another version of parctl"),
        ("{trunc", "damaged: JSONDecodeError"),
        ("[]", "damaged: TypeError"),
        ('{"schema": 1}', "damaged: KeyError"),
    ],
)
def test_a_state_that_cannot_be_read_hides_no_other_run(state: str, said: str) -> None:
    run(script_plan(["true"], axes={"dp": 1}), "good")
    run(script_plan(["true"], axes={"dp": 1}), "odd")
    directory("odd").state.write_text(state)
    (runs_root() / "a-file").touch()
    (runs_root() / "no-run").mkdir()

    states = {run.run_id: run.state for run in BACKEND.list()}
    assert states == {"good": State.SUCCEEDED, "odd": State.UNKNOWN}
    for ask in (BACKEND.status, BACKEND.cancel, BACKEND.delete, BACKEND.why):
        with pytest.raises(BackendError, match=said):
            ask("odd")
    shutil.rmtree(directory("odd").path)  # as the hint says


def test_a_command_that_no_kernel_takes_is_no_fault_of_parctl() -> None:
    status = run(script_plan(["printf", "a\0b"], axes={"dp": 1}))

    assert status.state is State.FAILED
    assert status.verdict is not None
    assert status.verdict.sentence == "ValueError: embedded null byte"


def test_a_user_without_a_home_is_told_what_to_set() -> None:
    program = "from parctl.launcher.places import runs_root, os; os.setuid(54321); runs_root()"
    nobody = {"HOME", "XDG_STATE_HOME"}
    environment = {key: value for key, value in os.environ.items() if key not in nobody}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
    )
    if "PermissionError" in done.stderr:
        pytest.skip("only root can become a user that nobody knows")
    assert "UsageError: this user has no home directory" in done.stderr
