"""Whoever is killed - supervisor, guard, launcher, terminal - status is true, nothing leaks."""

import os
import pty
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest
from tests.launcher.plans import script_plan
from tests.launcher.runs import (
    BACKEND,
    command_lines,
    directory,
    launch,
    left,
    log,
    pid_of,
    python,
    run,
    running,
    until,
)

from parctl.errors import BackendError
from parctl.launcher.backend import State
from parctl.launcher.processes import process
from parctl.launcher.waiting import wait_for

ROOT = Path(__file__).parents[2]
SLEEP = python("import time", "print('up', flush=True)", "time.sleep(60)")
# ignores SIGTERM, and so does its child in a session of its own, which ignores its parent's death
STUBBORN = python(
    "import os, signal, subprocess, sys, time",
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
    "subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)'],"
    " start_new_session=True)",
    "print('up', flush=True)",
    "time.sleep(60)",
)
# takes half a second to save when it is told to stop
SAVES = python(
    "import signal, sys, time",
    "def save(number, frame):",
    "    time.sleep(0.5)",
    "    print('saved')",
    "    sys.exit(143)",
    "signal.signal(signal.SIGTERM, save)",
    "print('up', flush=True)",
    "time.sleep(60)",
)
LAUNCH = (
    "import time;"
    "from tests.launcher.plans import script_plan;"
    "from tests.launcher.runs import launch;"
    "launch(script_plan(['/bin/sh', '-c', 'echo up; sleep 2'], axes={'dp': 2}));"
    "print('launched', flush=True);"
    "time.sleep(60)"
)


def kill(role: str) -> int:
    pid = pid_of(role)
    member = process(pid)
    assert member is not None
    os.kill(pid, signal.SIGKILL)
    until(lambda: not member.alive)
    return pid


def test_a_killed_supervisor_is_a_failed_run_with_no_process_left() -> None:
    launch(script_plan(STUBBORN, axes={"dp": 2}))
    running()
    assert len(left()) == 4
    pid = kill("supervisor")

    status = BACKEND.status("probe-1")  # at once, before anything has been cleared away
    assert status.state is State.FAILED
    assert status.verdict is not None
    assert status.verdict.sentence == (
        f"the supervisor (pid {pid}) was killed while the run was Running"
    )
    until(lambda: not left(), seconds=6)
    until(lambda: directory().read().state is State.FAILED)
    assert [rank.state for rank in BACKEND.status("probe-1").ranks] == ["lost", "lost"]


def test_ranks_that_can_are_given_time_to_save_when_the_supervisor_is_killed() -> None:
    launch(script_plan(SAVES, axes={"dp": 2}))
    running()
    kill("supervisor")

    until(lambda: not left(), seconds=3)
    assert [log(rank) for rank in (0, 1)] == [["up", "saved"]] * 2


def test_with_the_guard_killed_too_the_next_look_clears_up() -> None:
    launch(script_plan(STUBBORN, axes={"dp": 1}))
    running()
    kill("parctl-guard")
    kill("supervisor")

    time.sleep(0.2)
    assert len(left()) == 2  # nobody has looked yet
    assert BACKEND.status("probe-1").state is State.FAILED
    assert left() == []


def test_the_supervisor_goes_on_without_its_guard(tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    script = python(
        "import os, time",
        "print('up', flush=True)",
        f"while not os.path.exists({str(alone)!r}): time.sleep(0.01)",
    )
    launch(script_plan(script, axes={"dp": 1}))
    running()
    kill("parctl-guard")
    alone.touch()

    assert wait_for(BACKEND, "probe-1", timeout_s=5).state is State.SUCCEEDED


def test_the_launcher_can_be_killed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCH], cwd=ROOT, stdout=subprocess.PIPE
    ) as launcher:
        assert launcher.stdout is not None and launcher.stdout.readline() == b"launched\n"
        launcher.kill()

    assert BACKEND.status("probe-1").state in (State.PLACING, State.RUNNING)
    assert wait_for(BACKEND, "probe-1", timeout_s=10).state is State.SUCCEEDED


def test_the_terminal_can_be_closed() -> None:
    session, terminal = pty.fork()
    if session == 0:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-c", LAUNCH])
    said = b""
    while b"launched" not in said:
        said += os.read(terminal, 1024)
    os.close(terminal)  # the kernel sends SIGHUP to the session and its foreground group
    os.waitpid(session, 0)

    assert wait_for(BACKEND, "probe-1", timeout_s=10).state is State.SUCCEEDED


def test_a_launcher_that_dies_before_the_supervisor_took_over_is_named() -> None:
    # as if the launcher had been killed right after it made the run directory
    run(script_plan(["true"], axes={"dp": 1}))
    record = directory().read()
    gone = subprocess.Popen(["true"])
    owner = process(gone.pid)
    assert owner is not None
    gone.wait()
    directory().write(replace(record, state=State.PENDING, role="launcher", owner=owner))

    verdict = BACKEND.status("probe-1").verdict
    assert verdict is not None
    assert verdict.sentence == (
        f"the launcher (pid {gone.pid}) was killed while the run was Pending"
    )


def test_a_pid_that_was_given_to_another_process_is_not_taken_for_ours() -> None:
    launch(script_plan(SLEEP, axes={"dp": 1}))
    running()
    BACKEND.cancel("probe-1")
    with subprocess.Popen(["sleep", "60"]) as stranger:
        record = directory().read()
        reused = replace(record.owner, pid=stranger.pid)  # with the start time of ours
        directory().write(replace(record, state=State.RUNNING, owner=reused))
        assert BACKEND.status("probe-1").state is State.FAILED
        BACKEND.cancel("probe-1")
        assert stranger.poll() is None
        stranger.kill()


def test_a_restart_of_the_machine_is_told_apart() -> None:
    run(script_plan(["true"], axes={"dp": 1}))
    record = directory().read()
    machine = replace(record.machine, boot_id="another")
    directory().write(replace(record, state=State.RUNNING, machine=machine))

    verdict = BACKEND.status("probe-1").verdict
    assert verdict is not None
    assert verdict.cause == "restart of the machine"


def test_a_run_of_another_machine_is_left_alone() -> None:
    run(script_plan(["true"], axes={"dp": 1}))
    record = directory().read()
    machine = replace(record.machine, host="elsewhere")
    directory().write(replace(record, state=State.RUNNING, machine=machine))

    assert BACKEND.status("probe-1").state is State.RUNNING
    assert directory().read().state is State.RUNNING


@pytest.mark.parametrize("grace_s", [0.5, 60.0])
def test_cancel_leaves_no_process_within_5_s_even_if_nobody_listens(grace_s: float) -> None:
    launch(script_plan(STUBBORN, axes={"dp": 2}, stop_grace_s=grace_s))
    running()
    assert len(left()) == 4
    began = time.monotonic()
    BACKEND.cancel("probe-1")

    assert time.monotonic() - began < 5.0
    assert left() == []
    assert BACKEND.status("probe-1").state is State.CANCELLED


def test_cancel_lets_ranks_save_and_that_is_no_failure() -> None:
    launch(script_plan(SAVES, axes={"dp": 2}, retries=3))
    running()
    BACKEND.cancel("probe-1")

    status = BACKEND.status("probe-1")
    assert (status.state, status.verdict, status.restarts) == (State.CANCELLED, None, 0)
    assert [log(rank) for rank in (0, 1)] == [["up", "saved"]] * 2
    assert [rank.state for rank in status.ranks] == ["exited 143"] * 2


def test_a_stuck_supervisor_does_not_hold_up_cancel() -> None:
    launch(script_plan(SLEEP, axes={"dp": 2}))
    running()
    os.kill(pid_of("supervisor"), signal.SIGSTOP)
    began = time.monotonic()
    BACKEND.cancel("probe-1")

    assert time.monotonic() - began < 5.0
    assert left() == []
    time.sleep(0.3)  # the guard has had its say as well
    assert BACKEND.status("probe-1").state is State.CANCELLED


def test_cancelling_twice_or_after_the_end_changes_nothing() -> None:
    assert run(script_plan(["true"], axes={"dp": 1})).state is State.SUCCEEDED
    BACKEND.cancel("probe-1")
    BACKEND.cancel("probe-1")
    assert BACKEND.status("probe-1").state is State.SUCCEEDED


def test_a_program_that_leaves_with_0_when_it_is_cancelled_did_not_succeed() -> None:
    polite = python(
        "import signal, sys, time",
        "signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))",
        "print('up', flush=True)",
        "time.sleep(60)",
    )
    launch(script_plan(polite, axes={"dp": 2}))
    running()
    BACKEND.cancel("probe-1")

    assert BACKEND.status("probe-1").state is State.CANCELLED


SAVES_LONG = [line.replace("time.sleep(0.5)", "time.sleep(5.5)") for line in SAVES]


def test_cancel_gives_a_large_job_the_time_it_is_told_to() -> None:
    launch(script_plan(SAVES_LONG, axes={"dp": 2}))
    running()
    began = time.monotonic()
    BACKEND.cancel("probe-1", grace_s=30.0)

    assert 5.0 < time.monotonic() - began < 10.0  # not longer than it takes
    assert [log(rank) for rank in (0, 1)] == [["up", "saved"]] * 2
    assert BACKEND.status("probe-1").state is State.CANCELLED


@pytest.mark.parametrize("grace_s", [0.0, 2.0])
def test_cancelling_again_shortens_the_wait(grace_s: float) -> None:
    launch(script_plan(STUBBORN, axes={"dp": 2}))
    running()
    waiting = Thread(target=lambda: BACKEND.cancel("probe-1", grace_s=60.0))
    waiting.start()
    until(directory().cancel.exists)
    began = time.monotonic()
    BACKEND.cancel("probe-1", grace_s=grace_s)

    assert time.monotonic() - began < grace_s + 0.5
    assert left() == []
    waiting.join()
    assert BACKEND.status("probe-1").state is State.CANCELLED


def test_waiting_for_ranks_to_save_costs_no_cpu_time() -> None:
    launch(script_plan(SAVES_LONG, axes={"dp": 1}))
    running()
    supervisor = Path(f"/proc/{pid_of('supervisor')}/stat")
    waiting = Thread(target=lambda: BACKEND.cancel("probe-1", grace_s=3.5))
    waiting.start()
    time.sleep(0.5)
    ticks = [int(supervisor.read_text().rpartition(")")[2].split()[11])]
    time.sleep(1.0)
    ticks.append(int(supervisor.read_text().rpartition(")")[2].split()[11]))
    waiting.join()

    assert ticks[1] - ticks[0] <= 10  # of 100 in a second


def test_a_stuck_supervisor_takes_the_processes_with_it_that_carry_no_mark() -> None:
    hidden = python(
        "import os, sys",
        "if os.fork() == 0:",
        "    os.setsid()",
        "    if os.fork() == 0:",
        "        os.execve('/bin/sleep', ['sleep', '59.73'], {})",
        "    os._exit(0)",
        "os.wait()",
        "print('up', flush=True)",
        "os.execv('/bin/sleep', ['sleep', '60'])",
    )
    launch(script_plan(hidden, axes={"dp": 1}))
    running()
    until(lambda: any(b"59.73" in line for line in command_lines()))
    os.kill(pid_of("supervisor"), signal.SIGSTOP)
    BACKEND.cancel("probe-1")

    until(lambda: not any(b"59.73" in line for line in command_lines()), seconds=1.0)


def test_a_run_whose_directory_is_deleted_ends() -> None:
    launch(script_plan(SLEEP, axes={"dp": 2}, retries=3))
    running()
    supervisor = process(pid_of("supervisor"))
    assert supervisor is not None
    path = directory().path
    shutil.rmtree(path)

    until(lambda: not supervisor.alive)
    assert left() == []
    assert not path.exists()


def test_a_killed_supervisor_whose_directory_is_deleted_leaves_nothing() -> None:
    launch(script_plan(STUBBORN, axes={"dp": 1}))
    running()
    pid = pid_of("supervisor")
    os.kill(pid, signal.SIGSTOP)
    shutil.rmtree(directory().path)
    os.kill(pid, signal.SIGKILL)

    until(lambda: left() == [])


def test_a_supervisor_that_does_not_start_is_what_the_run_failed_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = script_plan(["true"], axes={"dp": 1})
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(BackendError, match="the supervisor of run `probe-1` did not start"):
        launch(plan)

    status = BACKEND.status("probe-1")
    assert status.state is State.FAILED
    assert status.verdict is not None
    assert status.verdict.sentence == "the supervisor of run `probe-1` did not start"


def test_on_a_full_disk_cancel_still_leaves_no_process_and_delete_makes_room() -> None:
    launch(script_plan(SLEEP, axes={"dp": 2}))
    running()
    os.kill(pid_of("supervisor"), signal.SIGSTOP)  # it would wait for room; we do not
    no_room = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limit[1]))
    try:
        with pytest.raises(BackendError, match="was stopped, but that cannot be written"):
            BACKEND.cancel("probe-1")
        assert left() == []
        assert [run.state for run in BACKEND.list()] == [State.FAILED]
        BACKEND.delete("probe-1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, no_room)

    assert not directory().path.exists()
