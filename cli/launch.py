"""`parctl launch`: recipe in, run id out."""

from typing import Annotated

import typer

from parctl.cli.options import ClusterOption, DevicesOption, RecipeArgument, SetOption
from parctl.cli.run_options import (
    AddressOption,
    BackendOption,
    KubeconfigOption,
    KubeContextOption,
    NamespaceOption,
    StorageOption,
    flags_again,
)


def launch(
    recipe: RecipeArgument,
    set_: SetOption = [],  # noqa: B006  (typer copies it)
    devices: DevicesOption = None,
    backend: BackendOption = None,
    address: AddressOption = None,
    namespace: NamespaceOption = None,
    context: KubeContextOption = None,
    kubeconfig: KubeconfigOption = None,
    storage: StorageOption = None,
    run_id: Annotated[
        str | None,
        typer.Option("--run-id", metavar="ID", help="Use this id.", show_default=False),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="The run's name, in place of the recipe's.")
    ] = None,
    follow: Annotated[
        bool,
        typer.Option("--follow", help="Show progress until the end; ^C cancels the run."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be submitted, and stop.")
    ] = False,
    dry_run_server: Annotated[
        bool,
        typer.Option(
            "--dry-run-server", help="Have the Kubernetes cluster check it all, and stop."
        ),
    ] = False,
    cluster: ClusterOption = None,
    output: Annotated[
        str, typer.Option("-o", "--output", help="--dry-run: yaml or json.")
    ] = "yaml",
    force: Annotated[bool, typer.Option("--force", help="Also if it will not fit.")] = False,
) -> int:
    """Run a recipe here, on Ray or on Kubernetes.

    Prints the run id and returns; the run goes on by itself. With --follow it shows the progress
    and exits as the run does: 0, 1 when it failed, 130 when it was cancelled. The first ^C then
    cancels the run (training saves a checkpoint), a second one leaves at once.
    """
    from parctl.cli.follow import follow_run  # here: once the run is there, ^C must find it ready
    from parctl.cli.output import check_format, note, print_document
    from parctl.launcher.launch import check_on_server, prepared_launch
    from parctl.runtime.serving.order import serves_at

    check_format(output, ("yaml", "json"))
    overrides = [*set_, *([f"name={name}"] if name else [])]
    with prepared_launch(
        recipe,
        overrides=overrides,
        num_devices=devices,
        backend=backend,
        run_id=run_id,
        force=force,
        ahead=not dry_run,
        cluster=cluster,
    ) as prepared:
        owner, manifests = prepared.backend, prepared.manifests
        for sentence in manifests.notes:
            note(sentence)
        if dry_run:
            for number, document in enumerate(manifests.documents):
                if number and output == "yaml":
                    print("---")
                print_document(document, output)
            return 0
        if dry_run_server:
            whole = check_on_server(owner, manifests)
            but = "" if whole else ", as far as can be told: you may not make pods, even to try"
            note(f"the cluster would accept it{but}; nothing was created")
            return 0
        for sentence in manifests.plan.recipe.notes:
            note(sentence)
        reference = owner.submit(manifests)
    typer.echo(reference.run_id)
    spec = manifests.plan.recipe.launch.kubernetes
    flags = flags_again(
        reference.backend,
        address=address,
        namespace=namespace or (None if spec is None else spec.namespace),
        context=context,
        kubeconfig=kubeconfig,
    )
    if not reference.created:
        state = owner.status(reference.run_id).state
        note(f"this run exists already with the same plan and is {state}; nothing was started")
        if state.ended:
            note(f"`parctl delete {reference.run_id}{flags}` makes room; or use another `--run-id`")
    elif where := serves_at(manifests.plan):
        note(f"once its weights are read it serves at {where}")
    if follow:
        return follow_run(owner, reference.run_id, flags=flags)
    if reference.created:
        note(f"it runs by itself; follow it with: `parctl logs {reference.run_id}{flags} --follow`")
    return 0
