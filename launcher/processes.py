"""Processes as facts of /proc: who lives, who belongs to a run, signals that hit no stranger.

A pid alone names nobody, because the kernel gives it out again. `Process` is a pid with the time it
was started (field 22 of /proc/PID/stat), and signals go through a pidfd that was opened before that
time was compared. Everything started for a run carries PARCTL_RUN_ID and PARCTL_RUN_DIR in its
environment, so what is left of a run can be found even when every process that knew its pids has
been killed.
"""

import ctypes
import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process, for ever: `start_time` is in clock ticks since boot."""

    pid: int
    start_time: int

    @property
    def alive(self) -> bool:
        """False once it has exited, also while its parent has not asked for the exit status."""
        stat = _stat(self.pid)
        return stat is not None and stat.start_time == self.start_time and stat.state not in "ZX"

    @property
    def halted(self) -> bool:
        """Whether it is stopped, by SIGSTOP or a debugger, and has not ended."""
        stat = _stat(self.pid)
        return stat is not None and stat.start_time == self.start_time and stat.state in "Tt"

    def signal(self, number: int) -> bool:
        """Send a signal; False when the process has gone. Its pid's next holder is never hit."""
        try:
            handle = os.pidfd_open(self.pid)
        except OSError:
            return False
        try:
            if not self.alive:
                return False
            signal.pidfd_send_signal(handle, number)
            return True
        except ProcessLookupError:
            return False
        finally:
            os.close(handle)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where pids mean something: one boot of one host, seen from one pid namespace."""

    host: str
    boot_id: str
    pid_namespace: int


def this_machine() -> Machine:
    return Machine(
        host=socket.gethostname(),
        boot_id=(PROC / "sys/kernel/random/boot_id").read_text().strip(),
        pid_namespace=os.stat("/proc/self/ns/pid").st_ino,
    )


def process(pid: int) -> Process | None:
    """Return the process that has this pid now."""
    stat = _stat(pid)
    return None if stat is None else Process(pid=pid, start_time=stat.start_time)


def this_process() -> Process:
    found = process(os.getpid())
    assert found is not None, "/proc is not mounted"
    return found


def processes_of_run(run_id: str, run_dir: Path) -> list[Process]:
    """Return this user's living processes that were started for a run, not us and our parents."""
    return processes_with({"PARCTL_RUN_ID": run_id, "PARCTL_RUN_DIR": str(run_dir)})


def take_marks(marks: Mapping[str, str]) -> None:
    """Write variables over the longer ones that this program was started with, for /proc to show.

    /proc shows the environment of a program from where it lay in memory at the start, so it shows
    what is written there, in this process and in those that it forks.
    """
    find = ctypes.CDLL(None).getenv
    find.restype = ctypes.c_void_p
    for name, value in marks.items():
        place, new = find(name.encode()), os.fsencode(value)
        room = len(ctypes.string_at(place))
        assert len(new) <= room, (name, value)
        ctypes.memmove(place, new.ljust(room, b"\0"), room)


def processes_with(variables: Mapping[str, str]) -> list[Process]:
    """Return this user's living processes with these in their environment, as above."""
    marks = [os.fsencode(f"{name}={value}\0") for name, value in variables.items()]
    excepted = set(_ancestry(os.getpid()))
    found = []
    for pid in _pids():
        if pid in excepted:
            continue
        stat = _stat(pid)
        try:
            environment = b"\0" + (PROC / str(pid) / "environ").read_bytes()
        except OSError:  # it has gone, or is another user's
            continue
        if stat is not None and all(b"\0" + mark in environment for mark in marks):
            found.append(Process(pid=pid, start_time=stat.start_time))
    return found


def descendants(pid: int) -> list[Process]:
    """Return every living process below `pid`, nearest first."""
    children: dict[int, list[tuple[int, _Stat]]] = {}
    for candidate in _pids():
        stat = _stat(candidate)
        if stat is not None:
            children.setdefault(stat.parent, []).append((candidate, stat))
    found, parents = [], [pid]
    while parents:
        below = [entry for parent in parents for entry in children.get(parent, [])]
        found += [
            Process(pid=child, start_time=stat.start_time)
            for child, stat in below
            if stat.state not in "ZX"
        ]
        parents = [child for child, _ in below]
    return found


def kill_run(run_id: str, run_dir: Path, *, grace_s: float) -> None:
    """Stop whatever is left of a run: SIGTERM, then SIGKILL after `grace_s`."""
    left = processes_of_run(run_id, run_dir)
    if not left:
        return
    if grace_s > 0:
        for member in left:
            member.signal(signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while left and time.monotonic() < deadline:
            time.sleep(0.05)
            left = [member for member in left if member.alive]
    # once more from /proc, until nobody is found: a dying process may have forked meanwhile
    while left := processes_of_run(run_id, run_dir):
        for member in left:
            member.signal(signal.SIGKILL)
        time.sleep(0.01)


def die_with_parent(number: int) -> None:
    """Have the kernel send this process a signal when its parent dies."""
    _prctl(PR_SET_PDEATHSIG, number)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies, in place of init."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def set_name(name: str) -> None:
    """Set what `ps` and `top` show for this process; 15 bytes at most."""
    _prctl(PR_SET_NAME, name.encode()[:15])


def count_oom_kills() -> int:
    """How many processes the kernel has killed for want of memory since boot."""
    with open("/proc/vmstat", encoding="ascii") as file:
        return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), 0)


def _prctl(option: int, value: int | bytes) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    argument = ctypes.c_char_p(value) if isinstance(value, bytes) else ctypes.c_ulong(value)
    if libc.prctl(option, argument, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option})")


@dataclass(frozen=True, slots=True)
class _Stat:
    state: str  # R, S, D, Z (exited, not asked for), X, ...
    parent: int
    start_time: int


def _stat(pid: int) -> _Stat | None:
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    # the name in parentheses may hold spaces and parentheses itself
    fields = text.rpartition(")")[2].split()
    return _Stat(state=fields[0], parent=int(fields[1]), start_time=int(fields[19]))


def _pids() -> Iterator[int]:
    return (int(entry) for entry in os.listdir(PROC) if entry.isdigit())


def _ancestry(pid: int) -> Iterator[int]:
    while pid:
        yield pid
        stat = _stat(pid)
        pid = stat.parent if stat else 0
