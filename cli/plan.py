"""`parctl plan`: who sits where, over which links, and whether it fits."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from parctl.cli.options import ClusterOption, DevicesOption, RecipeArgument, SetOption


def plan(
    recipe: RecipeArgument,
    cluster: ClusterOption = None,
    set_: SetOption = [],  # noqa: B006  (typer copies it)
    devices: DevicesOption = None,
    output: Annotated[
        str, typer.Option("-o", "--output", help="table, json, yaml or html.")
    ] = "table",
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            metavar="FILE",
            help="What `parctl bench` measured; else this cluster's own, if it was measured.",
            show_default=False,
        ),
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            "--tokens",
            metavar="N",
            help="Say what N tokens take, as in 15T; else what the recipe's steps do.",
            show_default=False,
        ),
    ] = None,
    search: Annotated[
        bool,
        typer.Option(
            "--search", help="Search for the fastest degrees, schedule, micro-batch and recompute."
        ),
    ] = False,
    max_gpus: Annotated[
        int | None,
        typer.Option(
            "--max-gpus", min=1, metavar="N", help="--search: use at most N.", show_default=False
        ),
    ] = None,
    keep: Annotated[
        list[str],
        typer.Option(
            "--keep",
            metavar="NAME=VALUE",
            help="--search: keep tp=8, schedule=1f1b, recompute=full, ...; several times.",
            show_default=False,
        ),
    ] = [],  # noqa: B006  (typer copies it)
    top: Annotated[
        int, typer.Option("--top", min=1, max=100, metavar="K", help="--search: show the K best.")
    ] = 8,
) -> None:
    """Show where every rank would sit, and whether the job fits.

    Nothing is started and no cluster is contacted: the cluster may be this machine, a saved
    topology or an imagined one such as h100:16x8. A job that does not fit is still shown, with the
    smallest change that would fit; `parctl launch` refuses it.

    With --search it ranks the ways to run the job instead, and says why each is not the first; the
    recipe's own degrees, micro-batch and recompute are ignored but for what --keep names.
    """
    from parctl.cli.output import check_format, console, note, print_document
    from parctl.errors import UsageError
    from parctl.launcher.calibrations import load_calibration
    from parctl.planner.budget import budget_of, read_tokens
    from parctl.planner.cluster import cluster_for
    from parctl.planner.make import make_plan
    from parctl.recipes.loader import load_recipe

    check_format(output, ("table", "json", "yaml", "html"))
    loaded = load_recipe(recipe, set_)
    topology = cluster_for(loaded, cluster, devices)
    if search:
        from parctl.cli.search_view import print_search
        from parctl.planner.search.run import read_keep
        from parctl.planner.search.run import search as search_space

        found = search_space(
            loaded,
            topology,
            keep=read_keep(keep),
            max_devices=max_gpus,
            top=top,
            calibration=load_calibration(topology, calibration),
        )
        print_search(found, loaded, topology.source, output)
        return
    if keep or max_gpus is not None:
        raise UsageError("--keep and --max-gpus belong to a search", hint="add `--search`")
    measured = load_calibration(topology, calibration)
    made = make_plan(loaded, topology, calibration=measured)
    if tokens is not None and (budget := budget_of(made, read_tokens(tokens))) is not None:
        made = replace(made, time={**made.time, "budget": asdict(budget)})
    if output == "table":
        from parctl.cli.plan_view import show_plan

        show_plan(made, console())
    elif output == "html":
        from parctl.planner.page.page import plan_to_html

        print(plan_to_html(made, topology, measured), end="")
    else:
        print_document(made.to_json(), output)
    for sentence in loaded.notes:
        note(f"note: {sentence}")
    for warning in topology.warnings:
        note(f"warning: {warning}")
