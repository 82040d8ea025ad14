"""How the launcher starts a supervisor, tells it its run, and hands the run over to it.

Telling is apart from starting, because a new interpreter takes a tenth of a second to be ready and
importing torch takes seconds: the launcher starts both first, and reads the recipe and plans
meanwhile. The other end is `supervisor.py`, which says what passes between the two.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from parctl.errors import BackendError
from parctl.launcher.backend import State
from parctl.launcher.local_manifest import ENVIRONMENT_DEFAULTS
from parctl.launcher.run_directory import RunDirectory, ahead_log, runs_root
from parctl.launcher.run_id import MAX_LENGTH
from parctl.launcher.verdict import plain_verdict


def spawn_supervisor(*, ahead: bool = False) -> subprocess.Popen[bytes]:
    """Start a supervisor in a session of its own; it waits to be told its run.

    `ahead`: it starts the fork server at once, in the environment that ranks have unless their
    recipe says otherwise. Without, what goes wrong with it until it knows its run is said on our
    stderr. Raises OSError.
    """
    environment, log = _environment(), ahead_log()
    if ahead:
        log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    supervisor = subprocess.Popen(
        [sys.executable, "-P", "-m", "parctl.launcher.supervisor"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,  # which is for data
        start_new_session=True,
    )
    if ahead:
        of_ranks = {**ENVIRONMENT_DEFAULTS, **environment, **_room_for_marks()}
        _tell(supervisor, {"log": str(log), "environment": of_ranks})
    return supervisor


def tell_it_is_alone(supervisor: subprocess.Popen[bytes]) -> None:
    """Tell a supervisor that its run, should it come, wants no fork server that began ahead."""
    _tell(supervisor, {"alone": True})


def hand_over(run: RunDirectory, supervisor: subprocess.Popen[bytes]) -> None:
    """Tell the supervisor its run, and wait until it looks after it."""
    _tell(supervisor, {"run_dir": str(run.path)})
    supervisor.communicate()
    if supervisor.returncode == 0:
        return
    sentence = f"the supervisor of run `{run.run_id}` did not start"
    hint = f"`{run.supervisor_log}` says why"
    with run.lock():
        record = run.read()
        if not record.state.ended:
            verdict = plain_verdict(sentence, cause="death of the supervisor", fix=hint)
            run.write(replace(record, state=State.FAILED, ended_unix=time.time(), verdict=verdict))
    raise BackendError(sentence, hint=hint)


def _tell(supervisor: subprocess.Popen[bytes], order: Mapping[str, Any]) -> None:
    assert supervisor.stdin
    with suppress(BrokenPipeError):  # its exit code will say that it did not start
        supervisor.stdin.write(json.dumps(order).encode() + b"\n")
        supervisor.stdin.flush()


def _room_for_marks() -> dict[str, str]:
    """Marks of a run that is not known yet, as long as those of any run."""
    runs = os.fsencode(runs_root())
    return {
        "PARCTL_RUN_ID": "?" * MAX_LENGTH,
        "PARCTL_RUN_DIR": "?" * (len(runs) + 1 + MAX_LENGTH),
    }


def _environment() -> dict[str, str]:
    """Ours: but a launch from within a rank starts a run of its own, not a part of the outer."""
    return {key: value for key, value in os.environ.items() if not _marks_a_run(key)}


def _marks_a_run(variable: str) -> bool:
    return variable in ("PARCTL_RUN_ID", "PARCTL_RUN_DIR", "PARCTL_ATTEMPT")
