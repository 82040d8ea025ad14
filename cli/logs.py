"""`parctl logs`: what the ranks wrote."""

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


def logs(
    run: RunArgument,
    backend: BackendOption = None,
    address: AddressOption = None,
    namespace: NamespaceOption = None,
    context: KubeContextOption = None,
    kubeconfig: KubeconfigOption = None,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Go on until the run has ended.")
    ] = False,
    rank: Annotated[
        int | None, typer.Option("--rank", metavar="N", help="Only this rank.", show_default=False)
    ] = None,
    tail: Annotated[
        int | None,
        typer.Option("--tail", min=0, metavar="N", help="Only the last N lines of each rank."),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="AGE", help="Only lines younger than 30s, 10m, 2h, 1d."),
    ] = None,
) -> None:
    """Print or follow what the ranks of a run wrote.

    Lines of several ranks begin with `[rank N]` and come in the order of their arrival. ^C ends
    the command, not the run.
    """
    from parctl.launcher.age import parse_age
    from parctl.launcher.backends import find_run

    owner, run_id = find_run(run, backend)
    start = None if since is None else parse_age(since)
    try:
        for line in owner.logs(run_id, rank=rank, since=start, tail=tail, follow=follow):
            who = "parctl" if line.rank is None else f"rank {line.rank}"
            prefix = "" if rank is not None else f"[{who}] "
            print(f"{prefix}{line.text}", flush=follow)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
