"""Starting a supervisor before there is a run, and before almost anything is imported.

A new interpreter takes a tenth of a second to be ready, and importing torch takes seconds. So the
first thing that `parctl launch` does is to start both, on the look of its words alone; all else
that it does is done meanwhile. A supervisor that gets no run leaves, and takes the fork server with
it: `supervisor.py` says what passes between the two.
"""

import atexit
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress

from parctl.errors import UsageError
from parctl.launcher.spawn import start_supervisor

TYPE_CHECKING = False  # as in `typing`, for which a launch would wait
if TYPE_CHECKING:
    from typing import Any

# what ranks on this machine have unless their recipe or the user says otherwise
ENVIRONMENT_DEFAULTS = {
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "PYTHONUNBUFFERED": "1",
}
# with one of these a launch needs no local run, or may not
ELSEWHERE = ("--help", "--dry-run", "--context", "--backend", "-b")
SETTINGS = {"PARCTL_BACKEND", "PARCTL_CONTEXT"}


class WaitingSupervisor:
    """A supervisor that is to be told its run. Raises OSError when it can't be started."""

    def __init__(self) -> None:
        self._pid, orders = start_supervisor(_environment())
        self._orders = os.fdopen(orders, "wb")

    def tell(self, order: "Mapping[str, Any]") -> None:
        import json  # not above: the supervisor starts meanwhile

        with suppress(BrokenPipeError):  # its exit code will say that it did not start
            self._orders.write(json.dumps(order).encode() + b"\n")
            self._orders.flush()

    def leave_alone(self) -> int:
        """Wait until it looks after the run that it was told, or has ended for want of one.

        Returns its exit code.
        """
        with suppress(BrokenPipeError):
            self._orders.close()
        try:
            _, status = os.waitpid(self._pid, 0)
        except ChildProcessError:  # whoever started us ignores SIGCHLD, so nobody is told of ends
            return 0
        return os.waitstatus_to_exitcode(status)


_begun: list[WaitingSupervisor] = []  # by `begin`; not taken yet


def begin(words: Sequence[str]) -> None:
    """Start a supervisor if these words of a launch, read by nobody yet, look like a local run."""
    if any(word.startswith(ELSEWHERE) for word in words) or SETTINGS & os.environ.keys():
        return
    with suppress(UsageError, OSError):  # what is wrong will be said in due course
        _begun.append(WaitingSupervisor())
        atexit.register(_dismiss)
        from parctl.launcher.places import config_file

        if not config_file().exists():  # else it may name another back end
            _start_fork_server(_begun[0])
            return
    _dismiss()


def take() -> WaitingSupervisor:
    """The supervisor that was begun, else a new one. Raises OSError."""
    return _begun.pop() if _begun else spawn_ahead()


def _dismiss() -> None:
    with suppress(KeyboardInterrupt):  # impatience with an end that is under way
        while _begun:
            _begun.pop().leave_alone()


def spawn_ahead() -> WaitingSupervisor:
    """Start a supervisor, and a fork server with it. Raises OSError."""
    supervisor = WaitingSupervisor()
    try:
        _start_fork_server(supervisor)
    except (UsageError, OSError):
        supervisor.leave_alone()
        raise
    return supervisor


def _start_fork_server(supervisor: WaitingSupervisor) -> None:
    """Have it start a fork server that imports torch, where there is torch.

    That is in the environment that ranks have unless their recipe says otherwise. Raises OSError.
    """
    from importlib.util import find_spec

    from parctl.launcher.places import ahead_log

    if find_spec("torch") is None:
        return
    log = ahead_log()
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    of_ranks = {**ENVIRONMENT_DEFAULTS, **_environment(), **_room_for_marks()}
    supervisor.tell({"log": str(log), "environment": of_ranks})


def _room_for_marks() -> dict[str, str]:
    """Marks of a run that is not known yet, as long as those of any run."""
    from parctl.launcher.places import MAX_RUN_ID, runs_root

    runs = os.fsencode(runs_root())
    return {
        "PARCTL_RUN_ID": "?" * MAX_RUN_ID,
        "PARCTL_RUN_DIR": "?" * (len(runs) + 1 + MAX_RUN_ID),
    }


def _environment() -> dict[str, str]:
    """Ours: but a launch from within a rank starts a run of its own, not a part of the outer."""
    return {key: value for key, value in os.environ.items() if not _marks_a_run(key)}


def _marks_a_run(variable: str) -> bool:
    return variable in ("PARCTL_RUN_ID", "PARCTL_RUN_DIR", "PARCTL_ATTEMPT")
