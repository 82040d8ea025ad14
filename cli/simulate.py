"""`parctl simulate`: the whole launch path without a cluster."""

from typing import Annotated

import typer

from parctl.cli.options import (
    ClusterOption,
    DevicesOption,
    OutputOption,
    RecipeArgument,
    SetOption,
)


def simulate(
    recipe: RecipeArgument,
    cluster: ClusterOption = None,
    set_: SetOption = [],  # noqa: B006  (typer copies it)
    devices: DevicesOption = None,
    backend: Annotated[
        str | None,
        typer.Option(
            "-b",
            "--backend",
            help="Render for this one only: kubernetes, ray or local.",
            show_default=False,
        ),
    ] = None,
    fail_node: Annotated[
        str | None,
        typer.Option(
            "--fail-node",
            metavar="NODE@STEP",
            help="Lose a node, by name or number, while a step is under way.",
            show_default=False,
        ),
    ] = None,
    mtbf_hours: Annotated[
        float | None,
        typer.Option(
            "--mtbf-hours",
            min=0.001,
            metavar="H",
            help="Hours until one node fails, on average.",
            show_default=False,
        ),
    ] = None,
    checkpoint_s: Annotated[
        float | None,
        typer.Option(
            "--checkpoint-s",
            min=0.001,
            metavar="S",
            help="Seconds that training stands still for a save.",
            show_default=False,
        ),
    ] = None,
    restart_s: Annotated[
        float | None,
        typer.Option(
            "--restart-s",
            min=0.0,
            metavar="S",
            help="Seconds from a failure until steps go on.",
            show_default=False,
        ),
    ] = None,
    output: OutputOption = "table",
) -> int:
    """Take a recipe through a whole launch on a cluster that need not exist.

    Nothing is started and nothing is contacted. Shows the gate, the placement, the objects that
    every back end would send, and on request what a lost node costs and how often to save. Exits
    with 3 when a launch would be refused because the job does not fit.
    """
    from parctl.cli.output import check_format, console, note, print_document
    from parctl.launcher.simulation import read_failure
    from parctl.launcher.simulation import simulate as simulated
    from parctl.planner.cluster import cluster_for
    from parctl.recipes.loader import load_recipe

    check_format(output, ("table", "json", "yaml"))
    loaded = load_recipe(recipe, set_)
    topology = cluster_for(loaded, cluster, devices)
    found = simulated(
        loaded,
        topology,
        backend=backend,
        fail_node=None if fail_node is None else read_failure(fail_node, topology),
        mtbf_hours=mtbf_hours,
        checkpoint_s=checkpoint_s,
        restart_s=restart_s,
    )
    from parctl.cli.simulate_view import show_simulation, simulation_to_json

    if output == "table":
        show_simulation(found, console())
    else:
        print_document(simulation_to_json(found), output)
    for sentence in loaded.notes:
        note(f"note: {sentence}")
    return 0 if found.misfit is None else found.misfit.exit_code
