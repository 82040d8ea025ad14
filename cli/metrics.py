"""`parctl metrics`: the numbers of a training run."""

import sys
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

SHOWN = (
    "step", "loss", "grad_norm", "lr", "tokens_per_s", "model_tflops_per_gpu", "mfu",
    "step_time_s", "predicted_step_time_s",
)  # fmt: skip


def metrics(
    run: RunArgument,
    backend: BackendOption = None,
    address: AddressOption = None,
    namespace: NamespaceOption = None,
    context: KubeContextOption = None,
    kubeconfig: KubeconfigOption = None,
    output: Annotated[
        str, typer.Option("-o", "--output", help="table, json, yaml or csv (all columns).")
    ] = "table",
) -> None:
    """Print the metrics of a run, step by step.

    A step that was made again after a restart is shown once, as it was last.
    """
    from parctl.cli.output import check_format, note, print_document
    from parctl.cli.table import print_table
    from parctl.launcher.backends import find_run

    check_format(output, ("table", "json", "yaml", "csv"))
    owner, run_id = find_run(run, backend)
    rows = [dict(row) for row in owner.metrics(run_id)]
    if output in ("json", "yaml"):
        print_document(rows, output)
    elif not rows:
        note(f"{run_id} has no metrics yet; only `task: train` writes them")
    elif output == "csv":
        import csv

        writer = csv.DictWriter(
            sys.stdout, fieldnames=list(dict.fromkeys(k for r in rows for k in r))
        )
        writer.writeheader()
        writer.writerows(rows)
    else:
        print_table(SHOWN, [[_short(row.get(column)) for column in SHOWN] for row in rows])


def _short(value: object) -> str:
    if value is None:
        return "--"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
