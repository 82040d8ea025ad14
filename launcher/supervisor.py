"""The process that looks after one local run: `python -m parctl.launcher.supervisor`.

It is detached from the launcher and its terminal, has one thread, and imports the standard library,
parctl's plain values and the YAML reader, nothing else. Its own death is seen to by the guard.

The launcher starts it before it has read the recipe, and tells it the run when there is one. The
run will most likely train, so it starts the fork server first, which imports torch meanwhile. It
imports the rest of itself when there is a run.

::

    launcher --- supervisor (first process: leaves as soon as the second is ready)
                     :
                     +-- supervisor --+-- guard
                                      +-- fork server        (training)
                                      +-- rank 0, rank 1, ...

On stdin come JSON lines, the last of them with the run; the end of stdin before that is the end::

    {"log": FILE, "environment": {...}}   start a fork server; FILE is for both until there is a run
    {"alone": true}                       the run, if one comes, needs none
    {"run_dir": DIRECTORY, "own_log": FILE}
"""

import json
import os
from contextlib import suppress

from parctl.launcher.spawn import end_fork_server, start_fork_server

TYPE_CHECKING = False  # as in `typing`, for which a launch would wait
if TYPE_CHECKING:
    from typing import Any, BinaryIO

READY = b"."


def main() -> None:
    """Detach, take a run over from the launcher, and see it to its end."""
    orders = open(0, "rb", closefd=False)  # noqa: SIM115 - until the last of them
    order = _next(orders)
    if not order:
        return
    if "log" in order:
        _write_to(order["log"])
    ready_read, ready_write = os.pipe()
    if os.fork():
        os.close(ready_write)
        # the launcher waits for us: 0 once the run is looked after, 1 when that failed
        os._exit(0 if os.read(ready_read, 1) == READY else 1)
    os.close(ready_read)
    server = None
    if "log" in order:
        try:
            server = start_fork_server(order["environment"], order["log"])
        except OSError:  # the run will meet it too, and has a verdict to say it in
            with suppress(FileNotFoundError):
                os.unlink(order["log"])
    while order and "run_dir" not in order:
        order = _next(orders)
        if server is not None and "run_dir" not in order:
            end_fork_server(server)
            server = None
    if not order:
        os._exit(1)
    _write_to(order["own_log"])

    # not above: until there is a run, launcher and fork server are to have the cores
    from pathlib import Path

    from parctl.launcher.children import Children
    from parctl.launcher.guard import start_guard
    from parctl.launcher.processes import adopt_orphans, set_name
    from parctl.launcher.ranks import ForkStarter
    from parctl.launcher.run_directory import RunDirectory
    from parctl.launcher.supervision import supervise, take_over

    set_name("parctl-super")
    adopt_orphans()
    children = Children()
    run, starter = RunDirectory(Path(order["run_dir"])), None
    if server is not None:
        starter = ForkStarter(server)
        marks = {"PARCTL_RUN_ID": run.run_id, "PARCTL_RUN_DIR": str(run.path)}
        starter.take_run(plan=run.plan, run_dir=run.path, log=run.forkserver_log, marks=marks)
    guard, dismiss_guard = start_guard(run)
    record = take_over(run)
    if record is not None:
        os.write(ready_write, READY)
        os.close(ready_write)
        supervise(run, record, children, guard, starter)
    dismiss_guard()


def _next(orders: "BinaryIO") -> "dict[str, Any]":
    """Read a line; nothing at the end."""
    line = orders.readline()
    order: dict[str, Any] = json.loads(line) if line else {}
    return order


def _write_to(log: str) -> None:
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


if __name__ == "__main__":
    main()
