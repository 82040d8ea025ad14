"""The process that looks after one local run: `python -m parctl.launcher.supervisor`.

It is detached from the launcher and its terminal, has one thread, and imports the standard library,
parctl's plain values and the YAML reader, nothing else. Its own death is seen to by the guard.

The launcher starts it before it has read the recipe, and tells it the run when it knows it; so it
imports first what starts the fork server, and the rest of itself while that imports torch.

::

    launcher --- supervisor (first process: leaves as soon as the second is ready)
                     :
                     +-- supervisor --+-- guard
                                      +-- fork server        (training)
                                      +-- rank 0, rank 1, ...

On stdin comes one line, `{"run_dir", "log", "fork_server": {"environment", "plan"} | null}`. With a
fork server the run directory is still to come, and one byte more says that it is there. The end of
stdin before that is the end.
"""

import json
import os
from pathlib import Path
from typing import Any

from parctl.launcher.children import Children
from parctl.launcher.processes import adopt_orphans, set_name
from parctl.launcher.ranks import ForkStarter

READY = b"."
GO = b"."  # the launcher has submitted the run


def main() -> None:
    """Detach, take the run over from the launcher, and see it to its end."""
    line = _read_line()
    if not line:
        return
    order = json.loads(line)
    log = Path(order["log"])
    _write_to(log)
    ready_read, ready_write = os.pipe()
    if os.fork():
        os.close(ready_write)
        # the launcher waits for us: 0 once the run is looked after, 1 when that failed
        os._exit(0 if os.read(ready_read, 1) == READY else 1)
    os.close(ready_read)
    set_name("parctl-super")
    adopt_orphans()
    children = Children()
    starter = _start_ahead(order, log) if order["fork_server"] else None

    # not above: these take as long as all of the above, and torch is on its way now
    from parctl.launcher.guard import start_guard
    from parctl.launcher.run_directory import RunDirectory
    from parctl.launcher.supervision import supervise, take_over

    run = RunDirectory(Path(order["run_dir"]))
    if starter is not None:
        if os.read(0, 1) != GO:
            log.unlink()
            os._exit(1)  # takes the fork server along
        starter.move_log(run.forkserver_log)
        _write_to(run.supervisor_log)
    guard, dismiss_guard = start_guard(run)
    record = take_over(run)
    if record is not None:
        os.write(ready_write, READY)
        os.close(ready_write)
        supervise(run, record, children, guard, starter)
    dismiss_guard()


def _read_line() -> bytes:
    """Read the order, and not one byte of what follows it."""
    with open(0, "rb", buffering=0, closefd=False) as stdin:
        return stdin.readline()


def _write_to(log: Path) -> None:
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _start_ahead(order: dict[str, Any], log: Path) -> ForkStarter:
    """Import torch while the launcher still plans."""
    server = order["fork_server"]
    return ForkStarter(
        server["environment"],
        plan=Path(server["plan"]),
        run_dir=Path(order["run_dir"]),
        log=log,
    )


if __name__ == "__main__":
    main()
