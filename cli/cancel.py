"""`parctl cancel`: stop a run."""

from typing import Annotated

import typer

from parctl.cli.options import RunArgument
from parctl.cli.run_options import (
    AddressOption,
    BackendOption,
    KubeconfigOption,
    KubeContextOption,
    NamespaceOption,
)


def cancel(
    run: RunArgument,
    backend: BackendOption = None,
    address: AddressOption = None,
    namespace: NamespaceOption = None,
    context: KubeContextOption = None,
    kubeconfig: KubeconfigOption = None,
    grace: Annotated[
        float | None,
        typer.Option(
            "--grace",
            min=0,
            metavar="SECONDS",
            help="Time to save and leave, in place of 5 seconds.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Stop a run; training saves a checkpoint first.

    Within 5 seconds, or those of --grace, no process of the run is left: who has not saved by then
    is killed. A large job needs longer to save: give it --grace 120. It ends as soon as all have
    left; cancelling again with less, or without --grace, shortens the wait.
    """
    from parctl.cli.output import note
    from parctl.launcher.backends import find_run

    owner, run_id = find_run(run, backend)
    before = owner.status(run_id).state
    owner.cancel(run_id, grace_s=grace)
    after = owner.status(run_id).state
    if before.ended:
        note(f"{run_id} had ended already: {after}")
    else:
        note(f"{run_id} is {after}")
