"""How the launcher tells a supervisor its run, and hands the run over to it.

Telling is apart from starting (`early.py`). The other end is `supervisor.py`, which says what
passes between the two.
"""

import time
from dataclasses import replace

from parctl.errors import BackendError
from parctl.launcher.backend import State
from parctl.launcher.early import WaitingSupervisor
from parctl.launcher.run_directory import RunDirectory
from parctl.launcher.verdict import plain_verdict


def tell_it_is_alone(supervisor: WaitingSupervisor) -> None:
    """Tell a supervisor that its run, should it come, wants no fork server that began ahead."""
    supervisor.tell({"alone": True})


def hand_over(run: RunDirectory, supervisor: WaitingSupervisor) -> None:
    """Tell the supervisor its run, and wait until it looks after it."""
    supervisor.tell({"run_dir": str(run.path), "own_log": str(run.supervisor_log)})
    if supervisor.leave_alone() == 0:
        return
    sentence = f"the supervisor of run `{run.run_id}` did not start"
    hint = f"`{run.supervisor_log}` says why"
    with run.lock():
        record = run.read()
        if not record.state.ended:
            verdict = plain_verdict(sentence, cause="death of the supervisor", fix=hint)
            run.write(replace(record, state=State.FAILED, ended_unix=time.time(), verdict=verdict))
    raise BackendError(sentence, hint=hint)
