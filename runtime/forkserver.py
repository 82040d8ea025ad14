"""Import torch once, then fork the ranks: `python -m parctl.runtime.forkserver`.

Importing torch and what the trainer needs costs seconds and hundreds of megabytes per process; a
fork costs milliseconds and shares the memory. It is safe on condition that this process has one
thread, has never touched CUDA and has no process group, which is so as long as importing is all it
does.

::

    supervisor --+-- fork server --- spawner (one per attempt, forks the ranks and leaves)
                 |                      :
                 +-- rank 0, rank 1, ...:   orphaned by the spawner, adopted by the supervisor

So the supervisor is the parent of every rank: it waits for them itself, and the end of this process
hurts none. Orders come as JSON lines on stdin, one attempt each: `{"plan", "run_dir", "marks",
"ranks": [{"rank", "environment", "log"}]}`; `marks` are the run's, where it was not known when this
process was started. For each rank a line `{"rank", "pid"}` goes to stdout. The end of stdin is the
end.
"""

import atexit
import gc
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import IO, Any, NoReturn

from parctl.launcher.processes import die_with_parent, set_name, take_marks


def main() -> int:
    """Serve orders until stdin ends."""
    supervisor = os.getppid()
    die_with_parent(signal.SIGTERM)
    orders, news = _take_pipes()
    set_name("parctl-fork")
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # until a rank can answer
    # importing makes objects that stay: looking for garbage among them takes a fifth of the time
    gc.disable()
    from parctl.runtime.execution import symbolic_shapes

    symbolic_shapes.put_off()  # before DTensor is imported
    from parctl.runtime.worker import run_rank

    gc.freeze()  # a collection in a rank would write to, and so copy, every page of this heap
    for line in orders:
        order = json.loads(line)
        take_marks(order["marks"])
        spawner = os.fork()
        if spawner == 0:
            rank = _spawn(order["ranks"], news, supervisor)
            if rank is None:
                os._exit(0)
            orders.close()
            news.close()
            _become(rank)
            _leave(run_rank(Path(order["plan"]), Path(order["run_dir"])))
        _, status = os.waitpid(spawner, 0)
        if status != 0:
            return 1
    return 0


def _take_pipes() -> tuple[IO[str], IO[str]]:
    """Move the pipes off fd 0 and 1, so that nothing that is imported can read or print there."""
    orders, news = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return os.fdopen(orders), os.fdopen(news, "w")


def _spawn(ranks: list[dict[str, Any]], news: IO[str], supervisor: int) -> dict[str, Any] | None:
    """Fork the ranks. Returns None in the spawner, and in each rank its own part of the order."""
    spawner = os.getpid()
    for rank in ranks:
        pid = os.fork()
        if pid == 0:
            _wait_for_adoption(spawner, supervisor)
            return rank
        news.write(json.dumps({"rank": rank["rank"], "pid": pid}) + "\n")
        news.flush()
    return None


def _wait_for_adoption(spawner: int, supervisor: int) -> None:
    """Wait until the supervisor is our parent: only then does its death reach us."""
    os.setpgid(0, 0)
    while os.getppid() == spawner:
        time.sleep(0.001)
    die_with_parent(signal.SIGTERM)
    if os.getppid() != supervisor:  # it died meanwhile
        os._exit(1)


def _become(rank: dict[str, Any]) -> None:
    """Take the rank's log and environment."""
    gc.enable()
    set_name(f"parctl-rank-{rank['rank']}")
    log = os.open(rank["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True)
    os.environ.clear()
    os.environ.update(rank["environment"])


def _leave(code: int) -> NoReturn:
    """Exit a rank without tearing the interpreter down, which would copy the whole shared heap."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
