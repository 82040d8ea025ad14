"""`parctl list`: one line per run, newest first."""

from typing import Annotated

import typer

from parctl.cli.run_options import (
    AddressOption,
    BackendOption,
    KubeconfigOption,
    KubeContextOption,
    NamespaceOption,
)


def list_(
    backend: BackendOption = None,
    address: AddressOption = None,
    namespace: NamespaceOption = None,
    context: KubeContextOption = None,
    kubeconfig: KubeconfigOption = None,
    mine: Annotated[bool, typer.Option("--mine", help="Only those that you launched.")] = False,
    output: Annotated[
        str, typer.Option("-o", "--output", help="table, json, yaml or name.")
    ] = "table",
) -> None:
    """List the runs."""
    from parctl.cli.output import check_format, note, print_document
    from parctl.cli.table import ago, print_table
    from parctl.launcher.backends import current_backend
    from parctl.launcher.owner import label_value, owner_name
    from parctl.recipes.frozen import to_json

    check_format(output, ("table", "json", "yaml", "name"))
    runs = current_backend(backend).list()
    if mine:
        runs = [run for run in runs if run.owner in (None, label_value(owner_name()))]
    if output in ("json", "yaml"):
        print_document(to_json(runs), output)
    elif output == "name":
        for run in runs:
            print(run.run_id)
    elif not runs:
        note("there are no runs; `parctl launch tiny-llama` starts one")
    else:
        rows = [
            (
                run.run_id,
                run.state,
                "" if run.step is None else f"{run.step}/{run.steps}",
                str(run.restarts),
                str(len(run.ranks)),
                ago(run.created_unix),
                run.backend,
            )
            for run in runs
        ]
        print_table(("run", "state", "step", "restarts", "ranks", "age", "backend"), rows)
