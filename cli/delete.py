"""`parctl delete`: remove an ended run."""

from typing import Annotated

import typer

from parctl.cli.run_options import (
    AddressOption,
    BackendOption,
    KubeconfigOption,
    KubeContextOption,
    NamespaceOption,
)


def delete(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Run ids, or their beginnings.", show_default=False),
    ],
    backend: BackendOption = None,
    address: AddressOption = None,
    namespace: NamespaceOption = None,
    context: KubeContextOption = None,
    kubeconfig: KubeconfigOption = None,
) -> None:
    """Delete an ended run with its logs and checkpoints.

    Checkpoints that the recipe keeps elsewhere (`checkpoint.dir`) stay.
    """
    from parctl.launcher.backends import find_run

    found = [find_run(run, backend) for run in runs]
    for owner, run_id in found:
        owner.delete(run_id)
        typer.echo(run_id)
