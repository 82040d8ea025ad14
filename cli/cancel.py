"""`parctl cancel`: stop a run."""

from parctl.cli.options import RunArgument
from parctl.cli.run_options import BackendOption


def cancel(run: RunArgument, backend: BackendOption = None) -> None:
    """Stop a run; training saves a checkpoint first.

    Within 5 seconds no process of the run is left: who has not saved by then is killed.
    """
    from parctl.cli.output import note
    from parctl.launcher.backends import find_run

    owner, run_id = find_run(run, backend)
    before = owner.status(run_id).state
    owner.cancel(run_id)
    after = owner.status(run_id).state
    if before.ended:
        note(f"{run_id} had ended already: {after}")
    else:
        note(f"{run_id} is {after}")
