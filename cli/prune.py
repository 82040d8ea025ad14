"""`parctl prune`: remove old runs."""

from typing import Annotated

import typer

from parctl.cli.run_options import AddressOption, BackendOption


def prune(
    runs: Annotated[
        int | None,
        typer.Option("--runs", min=0, metavar="N", help="Keep the N newest.", show_default=False),
    ] = None,
    days: Annotated[
        float | None,
        typer.Option("--days", min=0, metavar="N", help="Keep N days.", show_default=False),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be deleted, and stop.")
    ] = False,
    backend: BackendOption = None,
    address: AddressOption = None,
) -> None:
    """Delete old runs by number or age.

    A limit that is not given is that of `retention` in the configuration file. Runs that have not
    ended are never touched. Prints the ids of the runs that were deleted.
    """
    from parctl.cli.output import note
    from parctl.launcher.backends import current_backend
    from parctl.launcher.retention import expired, limits

    owner = current_backend(backend)
    gone = expired(owner.list(), limits(runs=runs, days=days))
    for run_id in gone:
        if not dry_run:
            owner.delete(run_id)
        typer.echo(run_id)
    if not gone:
        note("nothing to delete")
