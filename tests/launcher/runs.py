"""Launching hand-made plans in tests, and looking at what is left of them."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from parctl.launcher.backend import RunStatus, State
from parctl.launcher.local import LocalBackend
from parctl.launcher.places import runs_root
from parctl.launcher.processes import Process, processes_of_run
from parctl.launcher.run_directory import RunDirectory
from parctl.launcher.waiting import wait_for
from parctl.planner.plan import Plan

BACKEND = LocalBackend()


def python(*lines: str) -> list[str]:
    """A command that runs these lines of Python; without site packages it starts fast."""
    return [sys.executable, "-S", "-c", "\n".join(lines)]


def run_lightly(words: list[str], heavy: set[str]) -> tuple[int, str]:
    """Run parctl's command in a process of its own. Returns its exit code and stderr.

    A module of `heavy` that it loaded is an exit code of 1 with the modules' names.
    """
    program = (
        "import sys\n"
        "from parctl.cli.main import run\n"
        f"code = run({words!r})\n"
        f"loaded = {heavy!r} & set(sys.modules)\n"
        "sys.exit(str(loaded) if loaded else code)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    return done.returncode, done.stderr


def launch(plan: Plan, run_id: str = "probe-1") -> str:
    BACKEND.submit(BACKEND.render(plan, run_id))
    return run_id


def run(plan: Plan, run_id: str = "probe-1") -> RunStatus:
    launch(plan, run_id)
    return wait_for(BACKEND, run_id, timeout_s=30)


def log(rank: int | None, run_id: str = "probe-1", tail: int | None = None) -> list[str]:
    lines = BACKEND.logs(run_id, rank=rank, since=None, tail=tail, follow=False)
    return [line.text for line in lines]


def directory(run_id: str = "probe-1") -> RunDirectory:
    return RunDirectory(runs_root() / run_id)


def left(run_id: str = "probe-1") -> list[Process]:
    """The processes of a run that live."""
    return processes_of_run(run_id, directory(run_id).path)


def until(true: Callable[[], object], *, seconds: float = 10.0) -> None:
    """Wait until `true()` is, or fail."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.01)


def running(run_id: str = "probe-1") -> RunStatus:
    """Wait until every rank has printed something, so that it is past its first line."""
    until(lambda: BACKEND.status(run_id).state is State.RUNNING)
    status = BACKEND.status(run_id)
    until(lambda: all(log(rank.rank, run_id) for rank in status.ranks))
    return BACKEND.status(run_id)


def command_lines() -> list[bytes]:
    """What `ps` would show of every process of this machine."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found.append((entry / "cmdline").read_bytes())
            except OSError:
                continue
    return found


def pid_of(role: str, run_id: str = "probe-1") -> int:
    """The pid of the supervisor, or of a process that belongs to it by its name in `ps`.

    A fork gives itself that name a little after it has begun.
    """
    owner = directory(run_id).read().owner.pid
    if role == "supervisor":
        return owner
    until(lambda: children(owner, role))
    return children(owner, role)[0]


def children(owner: int, role: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != str(os.getpid()):
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            name, parent = stat.split("(", 1)[1].rsplit(")", 1)
            if name == role and int(parent.split()[1]) == owner:
                found.append(int(entry.name))
    return found
