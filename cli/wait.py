"""`parctl wait`: block until a run has ended."""

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


def wait(
    run: RunArgument,
    backend: BackendOption = None,
    address: AddressOption = None,
    namespace: NamespaceOption = None,
    context: KubeContextOption = None,
    kubeconfig: KubeconfigOption = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            min=0,
            metavar="SECONDS",
            help="Exit 124 after so long.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Wait until a run has ended and exit as it did.

    0: it succeeded, 1: it failed, 124: it goes on after --timeout, 130: it was cancelled.
    """
    from parctl.cli.output import note
    from parctl.launcher.backends import find_run
    from parctl.launcher.waiting import outcome_error, wait_for

    owner, run_id = find_run(run, backend)
    try:
        ended = wait_for(owner, run_id, timeout_s=timeout)
    except KeyboardInterrupt:
        note(f"{run_id} goes on; `parctl cancel {run_id}` stops it")
        raise typer.Exit(130) from None
    error = outcome_error(ended)
    if error is not None:
        raise error
    note(f"{run_id} succeeded")
