"""How the launcher starts a supervisor, tells it its run, and hands the run over to it.

Telling is apart from starting, because a new interpreter takes a tenth of a second to be ready: the
launcher starts one first and reads the recipe meanwhile. The other end is `supervisor.py`, which
says what passes between the two.
"""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace

from parctl.errors import BackendError
from parctl.launcher.backend import State
from parctl.launcher.local_manifest import ENVIRONMENT_DEFAULTS
from parctl.launcher.run_directory import RunDirectory
from parctl.launcher.verdict import plain_verdict


def spawn_supervisor() -> subprocess.Popen[bytes]:
    """Start a supervisor in a session of its own; it waits to be told its run.

    Until then what goes wrong with it is said on our stderr. Raises OSError.
    """
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "parctl.launcher.supervisor"],
        env=_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,  # which is for data
        start_new_session=True,
    )


def tell_run(supervisor: subprocess.Popen[bytes], run: RunDirectory, *, ahead: bool) -> None:
    """Tell a supervisor its run. `ahead`: start the fork server before there is a plan."""
    assert supervisor.stdin
    fork_server = {
        "plan": str(run.plan),
        "environment": {
            **ENVIRONMENT_DEFAULTS,
            **_environment(),
            "PARCTL_RUN_ID": run.run_id,
            "PARCTL_RUN_DIR": str(run.path),
        },
    }
    order = {
        "run_dir": str(run.path),
        "log": str(run.ahead_log if ahead else run.supervisor_log),
        "fork_server": fork_server if ahead else None,
    }
    with suppress(BrokenPipeError):  # its exit code will say that it did not start
        supervisor.stdin.write(json.dumps(order).encode() + b"\n")
        supervisor.stdin.flush()


def _environment() -> dict[str, str]:
    """Ours: but a launch from within a rank starts a run of its own, not a part of the outer."""
    return {key: value for key, value in os.environ.items() if not _marks_a_run(key)}


def hand_over(run: RunDirectory, supervisor: subprocess.Popen[bytes]) -> None:
    """Tell the supervisor to go on, and wait until it looks after the run."""
    supervisor.communicate(b".")
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


def _marks_a_run(variable: str) -> bool:
    return variable in ("PARCTL_RUN_ID", "PARCTL_RUN_DIR", "PARCTL_ATTEMPT")
