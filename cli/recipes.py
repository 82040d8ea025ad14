"""`parctl recipes`: list, show and copy what ships with parctl."""

from pathlib import Path
from typing import Annotated

import typer

from parctl.cli.options import OutputOption

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="List, show and copy the recipes that parctl ships.",
)
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="See `parctl recipes list`.")]


@app.command("list")
def list_(
    models: Annotated[bool, typer.Option("--models", help="List models instead.")] = False,
    output: OutputOption = "table",
) -> None:
    """List the shipped recipes, or the models that a recipe can name."""
    from rich.table import Table

    from parctl.cli.output import check_format, console, print_document
    from parctl.recipes.catalogue import count_text, model_rows, recipe_rows

    check_format(output, ("table", "json", "yaml"))
    rows = model_rows() if models else recipe_rows()
    if output != "table":
        print_document(rows, output)
        return
    if models:
        table = Table(*rows[0], box=None, pad_edge=False)
        for row in rows:
            for key in ("parameters", "active"):
                row[key] = count_text(row[key])
            table.add_row(
                *(f"{cell:,}" if isinstance(cell, int) else cell for cell in row.values())
            )
        for column in table.columns[:-1]:
            column.no_wrap = True
    else:
        # the line under what a recipe is for is a recipe itself
        table = Table("name", "what, and as a line", box=None, pad_edge=False)
        for row in rows:
            line = f"{row['model']}: {row['parallelism']}"
            table.add_row(row["name"], f"{row['what']}\n{line}")
    console().print(table)


@app.command()
def show(name: NameArgument) -> None:
    """Print a shipped recipe as it is written."""
    from parctl.recipes.catalogue import recipe_text

    typer.echo(recipe_text(name), nl=False)


@app.command()
def init(
    name: NameArgument,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE", help="Default: NAME.yaml.")
    ] = None,
) -> None:
    """Copy a shipped recipe into a file of your own; an existing file is left alone."""
    from parctl.recipes.catalogue import copy_recipe

    typer.echo(copy_recipe(name, to or Path(f"{name.lower()}.yaml")))
