"""What a cluster takes of this machine, under one name: a network namespace, cgroups, processes.

Everything that belongs to cluster NAME can be found without a list: processes by their cgroup
`/parctl-NAME` (children inherit it, also those of a daemon that died), mounts by the folder they
lie in, links and addresses by their namespace. So whatever was left by a test run that was killed
is removed by whoever comes next.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
NETWORK_NAMESPACES = Path("/run/netns")
FILE_WATCHES = Path("/proc/sys/fs/inotify/max_user_instances")
MANY_FILE_WATCHES = 1024
CLONE_NEWNET = 0x40000000
# The daemon is nobody's child, so that it outlives its starter without a word; it joins the cgroup
# before the program starts, so that no child of it is ever outside.
BEGIN = """echo 0 > "$0" && echo $$ > "$1" && shift && exec "$@" """
DETACH = f"""setsid sh -c '{BEGIN}' "$@" &"""

LIBC = ctypes.CDLL(None, use_errno=True)


class MachineError(Exception):
    """Something that the machine refused, with its own words."""


def command(*words: str, stdin: str | None = None, timeout_s: float = 60) -> str:
    """Run a program to its end and return what it printed."""
    done = subprocess.run(words, input=stdin, capture_output=True, text=True, timeout=timeout_s)
    if done.returncode != 0:
        raise MachineError(
            f"`{' '.join(words)}` ended with {done.returncode}: {done.stderr[-1000:]}"
        )
    return done.stdout


def wait_until(true: Callable[[], object], *, seconds: float, what: str) -> float:
    """Wait until `true()` is, and return the seconds it took."""
    start = time.monotonic()
    while not true():
        if time.monotonic() - start > seconds:
            raise MachineError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.05)
    return time.monotonic() - start


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One cluster's share of this machine.

    Attributes:
        name: names the network namespace, the cgroups and the folder.
        folder: certificates, data, logs, sockets; short, for a socket's path is at most 107 bytes.
    """

    name: str
    folder: Path

    @property
    def cgroup(self) -> str:
        return f"parctl-{self.name}"

    @property
    def namespace(self) -> Path:
        return NETWORK_NAMESPACES / f"parctl-{self.name}"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    # ---------------------------------------------------------------- network

    def make_namespace(self) -> None:
        # every kubelet and controller watches files; the usual 128 are for one desktop
        if int(FILE_WATCHES.read_text()) < MANY_FILE_WATCHES:
            FILE_WATCHES.write_text(str(MANY_FILE_WATCHES))
        if not self.namespace.exists():
            command("ip", "netns", "add", self.namespace.name)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Put this thread, and what it starts, in the cluster's network."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            enter(self.namespace)
            try:
                yield
            finally:
                enter(before)
        finally:
            os.close(before)

    # -------------------------------------------------------------- processes

    def start(
        self,
        name: str,
        words: Sequence[str],
        *,
        group: str = "daemons",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start a daemon in its own session, its output in `logs/NAME.log`."""
        procs = self.make_cgroup("pids", group) / "cgroup.procs"
        self.logs.mkdir(parents=True, exist_ok=True)
        pid_file = self.pid_file(name)
        pid_file.parent.mkdir(exist_ok=True)
        pid_file.unlink(missing_ok=True)
        with (self.logs / f"{name}.log").open("ab") as log:
            subprocess.run(
                ["/bin/sh", "-c", DETACH, "sh", str(procs), str(pid_file), *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(environment or {})},
                check=True,
            )
        wait_until(lambda: self.pid(name), seconds=60, what=f"start of {name}")

    def pid_file(self, name: str) -> Path:
        return self.folder / "pids" / name

    def pid(self, name: str) -> int:
        """A daemon's process; 0 where it was never started."""
        try:
            return int(self.pid_file(name).read_text())
        except (OSError, ValueError):
            return 0

    def alive(self, name: str) -> bool:
        return self.pid(name) in self.processes()  # a number may be another process's by now

    def stop(self, name: str, how: signal.Signals = signal.SIGTERM, *, seconds: float = 5) -> None:
        """End a daemon and wait for its end; after some seconds, kill it."""
        if not self.alive(name):
            return
        pid = self.pid(name)
        os.kill(pid, how)
        try:
            wait_until(lambda: not self.alive(name), seconds=seconds, what=f"end of {name}")
        except MachineError:
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not self.alive(name), seconds=seconds, what=f"death of {name}")
        self.pid_file(name).unlink(missing_ok=True)

    def log_tail(self, name: str, lines: int = 5) -> str:
        try:
            text = (self.logs / f"{name}.log").read_text(errors="replace")
        except OSError:
            return "(no log)"
        return "\n".join(line[:400] for line in text.splitlines()[-lines:])

    def must_live(self, *names: str) -> None:
        for name in names:
            if not self.alive(name):
                raise MachineError(f"{name} ended:\n{self.log_tail(name)}")

    # ---------------------------------------------------------------- cgroups

    def make_cgroup(self, controller: str, group: str) -> Path:
        path = CGROUPS / controller / self.cgroup / group
        path.mkdir(parents=True, exist_ok=True)
        return path

    def processes(self, group: str = "") -> list[int]:
        """The processes of a cgroup and of those under it."""
        found = []
        for folder, _, files in os.walk(CGROUPS / "pids" / self.cgroup / group):
            if "cgroup.procs" in files:
                with contextlib.suppress(OSError):
                    found += [
                        int(pid) for pid in (Path(folder) / "cgroup.procs").read_text().split()
                    ]
        return found

    def kill_group(self, group: str = "") -> None:
        """Kill every process of a cgroup at once, as the loss of power would."""

        def none_left() -> bool:
            for pid in self.processes(group):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not self.processes(group)

        wait_until(none_left, seconds=20, what=f"death of all processes in {self.cgroup}/{group}")

    def remove_cgroups(self, group: str = "") -> None:
        for controller in CGROUPS.iterdir():
            for folder, _, _ in os.walk(controller / self.cgroup / group, topdown=False):
                wait_until(partial(removed, folder), seconds=5, what=f"removal of {folder}")

    # ----------------------------------------------------------------- mounts

    def mounts(self, under: Path) -> list[str]:
        """What is mounted in a folder, newest first."""
        lines = Path("/proc/self/mounts").read_text().splitlines()
        points = [line.split()[1].replace("\\040", " ") for line in lines]
        return [point for point in reversed(points) if Path(point).is_relative_to(under)]

    def unmount(self, under: Path) -> None:
        for point in self.mounts(under):
            LIBC.umount2(point.encode(), 2)  # MNT_DETACH

    # -------------------------------------------------------------------- all

    def remove(self) -> None:
        """Remove all that is this cluster's: processes, mounts, cgroups, network, files."""
        self.kill_group()
        self.unmount(self.folder)
        self.remove_cgroups()
        if self.namespace.exists():
            command("ip", "netns", "del", self.namespace.name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def remains(self) -> list[str]:
        """What is still there of this cluster, one line each."""
        found = [f"process {pid}" for pid in self.processes()]
        found += [f"mount {point}" for point in self.mounts(self.folder)]
        found += [
            f"cgroup {controller / self.cgroup}"
            for controller in CGROUPS.iterdir()
            if (controller / self.cgroup).exists()
        ]
        if self.namespace.exists():
            found.append(f"network namespace {self.namespace}")
        if self.folder.exists():
            found.append(f"folder {self.folder}")
        return found


def enter(namespace: Path | int) -> None:
    """Move this thread to a network namespace (`os.setns` came with Python 3.12)."""
    descriptor = namespace if isinstance(namespace, int) else os.open(namespace, os.O_RDONLY)
    try:
        if LIBC.setns(descriptor, CLONE_NEWNET) != 0:
            raise MachineError(f"setns: {os.strerror(ctypes.get_errno())}")
    finally:
        if descriptor is not namespace:
            os.close(descriptor)


def removed(folder: str) -> bool:
    """Try to remove a cgroup; it is busy for an instant after its last process ended."""
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
