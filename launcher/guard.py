"""What happens when the supervisor itself is killed: the run has failed, nothing of it stays.

Two parties can see to that, under the run's lock, whoever comes first. The guard is a fork of the
supervisor that does nothing but wait for the other end of a pipe to close. Should both be killed,
the next `status`, `list` or `cancel` finds a run whose owner is not alive.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace

from parctl.launcher.backend import State, Verdict
from parctl.launcher.processes import kill_run, set_name, this_machine
from parctl.launcher.run_directory import Record, RunDirectory
from parctl.launcher.verdict import plain_verdict

GRACE_S = 3.0  # for ranks to save, much as after `parctl cancel`
DONE = b"."


def start_guard(run: RunDirectory) -> tuple[int, Callable[[], None]]:
    """Fork the guard. Returns its pid, and what the supervisor calls at its own orderly end."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(write_end)
        _stand_guard(run, read_end)
    os.close(read_end)
    return pid, lambda: _dismiss(write_end)


def bury(run: RunDirectory, *, grace_s: float, wait: bool) -> Record:
    """End a run whose owner has died: stop what is left of it and say so in its state.

    Raises BlockingIOError when somebody else is at it, unless told to wait for that.
    """
    with run.lock(wait=wait):
        record = run.read()
        if record.state.ended or owner_alive(record):
            return record
        kill_run(run.run_id, run.path, grace_s=grace_s)
        buried = declared_dead(record)
        run.write(buried)
        run.append_event("owner died", {"sentence": buried.verdict and buried.verdict.sentence})
        return buried


def owner_alive(record: Record) -> bool:
    """Whether somebody still looks after the run; yes when it cannot be seen from here."""
    here = this_machine()
    if record.machine.host != here.host:
        return True
    if record.machine.boot_id != here.boot_id:
        return False
    if record.machine.pid_namespace != here.pid_namespace:
        return True
    return record.owner.alive


def declared_dead(record: Record) -> Record:
    """The record of a run that ended with its owner."""
    return replace(
        record,
        state=State.FAILED,
        ended_unix=time.time(),
        verdict=_verdict(record),
        ranks=tuple(
            replace(rank, state="lost") if rank.state in ("running", "starting") else rank
            for rank in record.ranks
        ),
    )


def _verdict(record: Record) -> Verdict:
    if record.machine.boot_id != this_machine().boot_id:
        return plain_verdict(
            f"the machine {record.machine.host} was restarted while the run was {record.state}",
            cause="restart of the machine",
            fix="launch it again; training resumes from the newest checkpoint in `checkpoint.dir`",
        )
    return plain_verdict(
        f"the {record.role} (pid {record.owner.pid}) was killed while the run was {record.state}",
        cause=f"death of the {record.role}",
        fix="launch it again; nothing in parctl sends SIGKILL to it",
    )


def _stand_guard(run: RunDirectory, read_end: int) -> None:
    """Wait for the supervisor's end; never returns."""
    os.setpgid(0, 0)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    set_name("parctl-guard")
    code = 0
    try:
        if os.read(read_end, 1) != DONE:
            bury(run, grace_s=GRACE_S, wait=True)
    except FileNotFoundError:  # the run was deleted; nobody can ask for its end any more
        kill_run(run.run_id, run.path, grace_s=0.0)
    except Exception:
        import traceback

        traceback.print_exc()
        code = 1
    finally:
        sys.stderr.flush()
        os._exit(code)


def _dismiss(write_end: int) -> None:
    os.write(write_end, DONE)
    os.close(write_end)
