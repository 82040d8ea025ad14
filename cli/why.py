"""`parctl why`: what is the matter with a run."""

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


def why(
    run: RunArgument,
    backend: BackendOption = None,
    address: AddressOption = None,
    namespace: NamespaceOption = None,
    context: KubeContextOption = None,
    kubeconfig: KubeconfigOption = None,
    output: Annotated[str, typer.Option("-o", "--output", help="text, json or yaml.")] = "text",
) -> None:
    """Say in one sentence why a run waits or failed, and what would help."""
    from parctl.cli.output import check_format, print_document
    from parctl.launcher.backends import find_run
    from parctl.recipes.frozen import to_json

    check_format(output, ("text", "json", "yaml"))
    owner, run_id = find_run(run, backend)
    diagnosis = owner.why(run_id)
    if output != "text":
        print_document(to_json(diagnosis), output)
        return
    print(diagnosis.sentence)
    if diagnosis.fix:
        print(f"fix: {diagnosis.fix}")
    for line in diagnosis.evidence:
        print(f"  {line}")
