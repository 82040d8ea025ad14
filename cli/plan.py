"""`parctl plan`: who sits where, over which links, and whether it fits."""

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
) -> None:
    """Show where every rank would sit, and whether the job fits.

    Nothing is started and no cluster is contacted: the cluster may be this machine, a saved
    topology or an imagined one such as h100:16x8. A job that does not fit is still shown, with the
    smallest change that would fit; `parctl launch` refuses it.
    """
    from parctl.cli.output import check_format, console, note, print_document
    from parctl.planner.cluster import cluster_for
    from parctl.planner.make import make_plan
    from parctl.recipes.loader import load_recipe

    check_format(output, ("table", "json", "yaml", "html"))
    loaded = load_recipe(recipe, set_)
    topology = cluster_for(loaded, cluster, devices)
    made = make_plan(loaded, topology)
    if output == "table":
        from parctl.cli.plan_view import show_plan

        show_plan(made, console())
    elif output == "html":
        from parctl.planner.page.page import plan_to_html

        print(plan_to_html(made, topology), end="")
    else:
        print_document(made.to_json(), output)
    for sentence in loaded.notes:
        note(f"note: {sentence}")
    for warning in topology.warnings:
        note(f"warning: {warning}")
