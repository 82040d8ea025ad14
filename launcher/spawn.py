"""Starting interpreters of ours, with nothing imported for it: a launch waits for their start.

`subprocess` alone takes as long to import as an interpreter takes to start, `typing` half as long.
"""

import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from signal import SIGCHLD, SIGKILL


class ForkServer:
    """A fork server, as its parent knows it: its pid, this end of its pipes, and its log."""

    def __init__(self, *, pid: int, orders: int, news: int, log: str) -> None:
        self.pid = pid
        self.orders = orders
        self.news = news
        self.log = log


def start_supervisor(environment: Mapping[str, str]) -> tuple[int, int]:
    """Start a supervisor in a session of its own. Returns its pid, and where it reads its orders.

    What goes wrong with it until it knows its run is said on our stderr. Raises OSError.
    """
    with ExitStack() as theirs, ExitStack() as ours:
        orders_read, orders_write = _pipe(theirs, ours)
        nothing = os.open(os.devnull, os.O_WRONLY)  # stdout is for data
        theirs.callback(os.close, nothing)
        ends = (orders_read, nothing, 2)
        pid = _spawn("parctl.launcher.supervisor", environment, ends, session=True)
        ours.pop_all()
    return pid, orders_write


def start_fork_server(environment: Mapping[str, str], log: str) -> ForkServer:
    """Start a fork server in a process group of its own, with `log` to write to. Raises OSError."""
    # one BLAS thread: a process with threads cannot fork safely
    environment = {**environment, "OPENBLAS_NUM_THREADS": "1"}
    with ExitStack() as theirs, ExitStack() as ours:
        orders_read, orders_write = _pipe(theirs, ours)
        news_read, news_write = _pipe(ours, theirs)
        os.set_blocking(news_read, False)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        theirs.callback(os.close, output)
        pid = _spawn("parctl.runtime.forkserver", environment, (orders_read, news_write, output))
        ours.pop_all()
    return ForkServer(pid=pid, orders=orders_write, news=news_read, log=log)


def end_fork_server(server: ForkServer) -> None:
    """End one that was started for no run, with its log."""
    with suppress(FileNotFoundError):
        os.unlink(server.log)
    os.kill(server.pid, SIGKILL)
    os.waitpid(server.pid, 0)
    os.close(server.orders)
    os.close(server.news)


def _pipe(reader: ExitStack, writer: ExitStack) -> tuple[int, int]:
    """A pipe whose ends are closed with these."""
    read, write = os.pipe()
    reader.callback(os.close, read)
    writer.callback(os.close, write)
    return read, write


def _spawn(
    module: str, environment: Mapping[str, str], ends: tuple[int, int, int], session: bool = False
) -> int:
    """Run a module with these as stdin, stdout and stderr. Nothing else of ours is open in it."""
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-P", "-m", module],
        environment,
        file_actions=[(os.POSIX_SPAWN_DUP2, end, fd) for fd, end in enumerate(ends)],
        setsigdef=[SIGCHLD],  # who ignores it is not told how its children ended
        **({"setsid": True} if session else {"setpgroup": 0}),
    )
