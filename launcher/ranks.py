"""Starting ranks: each program by itself, or forked from a process that has imported torch.

Either way a rank becomes a direct child of the supervisor, in a process group of its own, with its
output in its own log, and gets SIGTERM from the kernel should the supervisor die.
"""

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from parctl.launcher.processes import die_with_parent
from parctl.launcher.spawn import ForkServer


@dataclass(frozen=True, slots=True, kw_only=True)
class RankStart:
    """All that one rank needs to start."""

    rank: int
    environment: Mapping[str, str]
    log: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    rank: int
    pid: int


class Starter(Protocol):
    """Starts ranks. `fd` can be read when `started` has news; None: no news comes that way."""

    @property
    def fd(self) -> int | None: ...
    @property
    def usable(self) -> bool: ...
    def start(self, ranks: Sequence[RankStart]) -> None: ...
    def started(self) -> Iterator[Started]: ...
    def failure(self, pid: int, code: int) -> str | None: ...
    def close(self) -> None: ...


class CommandStarter:
    """Starts the user's own program once per rank."""

    fd = None
    usable = True

    def __init__(self, command: Sequence[str], workdir: str | None) -> None:
        self._command = command
        self._workdir = workdir
        self._started: list[Started] = []

    def start(self, ranks: Sequence[RankStart]) -> None:
        """Raises OSError when the program cannot be started."""
        for rank in ranks:
            with rank.log.open("ab") as log:
                program = subprocess.Popen(
                    self._command,
                    env=rank.environment,
                    cwd=self._workdir,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    process_group=0,
                    # the supervisor has one thread, so nothing can be locked between fork and exec
                    preexec_fn=_die_with_supervisor,
                )
            # the supervisor reaps every child itself, by pid
            program.returncode = 0
            self._started.append(Started(rank=rank.rank, pid=program.pid))

    def started(self) -> Iterator[Started]:
        while self._started:
            yield self._started.pop(0)

    def failure(self, pid: int, code: int) -> str | None:
        return None

    def close(self) -> None:
        pass


class ForkStarter:
    """Starts ranks through `parctl.runtime.forkserver`, which lives as long as the run.

    That is started first, so that it imports torch while the supervisor still prepares the attempt,
    or while nobody knows the run yet: `take_run` then tells it later.
    """

    def __init__(
        self, server: ForkServer, *, plan: Path | None = None, run_dir: Path | None = None
    ) -> None:
        self.pid = server.pid
        self.fd: int | None = server.news
        self.usable = True
        self._log, self._plan, self._run_dir = Path(server.log), plan, run_dir
        self._marks: Mapping[str, str] = {}
        self._orders: IO[str] = os.fdopen(server.orders, "w")
        self._partial = b""
        self._waiting: set[int] = set()

    def start(self, ranks: Sequence[RankStart]) -> None:
        """Order the ranks; if the fork server has gone, its exit says so."""
        order = {
            "plan": str(self._plan),
            "run_dir": str(self._run_dir),
            "marks": self._marks,
            "ranks": [
                {"rank": rank.rank, "environment": dict(rank.environment), "log": str(rank.log)}
                for rank in ranks
            ],
        }
        self._marks = {}
        self._waiting = {rank.rank for rank in ranks}
        with suppress(BrokenPipeError):
            self._orders.write(json.dumps(order) + "\n")
            self._orders.flush()

    def take_run(self, *, plan: Path, run_dir: Path, log: Path, marks: Mapping[str, str]) -> None:
        """Have a fork server that was started for no run yet serve this one."""
        self._plan, self._run_dir, self._marks = plan, run_dir, marks
        with suppress(FileNotFoundError):  # somebody has tidied up
            self._log.rename(log)
        self._log = log

    def started(self) -> Iterator[Started]:
        for news in self._read():
            self._waiting.discard(news["rank"])
            yield Started(rank=news["rank"], pid=news["pid"])

    def failure(self, pid: int, code: int) -> str | None:
        """Return why ranks can no longer start, if the exit of `pid` means that."""
        if pid != self.pid:
            return None
        self.usable = False
        if not self._waiting:
            return None
        from parctl.launcher.log_files import last_lines

        lines = last_lines(self._log, 1)
        said = lines[0] if lines else f"the process that forks them ended with {code}"
        return f"the ranks could not be started: {said}"

    def close(self) -> None:
        """End the fork server; its ranks are ours and stay."""
        with suppress(OSError):  # the other end has gone already
            self._orders.close()
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None

    def _read(self) -> Iterator[dict[str, Any]]:
        while self.fd is not None:
            try:
                data = os.read(self.fd, 65536)
            except BlockingIOError:
                return
            if not data:
                os.close(self.fd)
                self.fd = None
                return
            *lines, self._partial = (self._partial + data).split(b"\n")
            yield from (json.loads(line) for line in lines)


def _die_with_supervisor() -> None:
    die_with_parent(signal.SIGTERM)
