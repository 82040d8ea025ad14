"""How a search looks in a terminal: the ranking with reasons, other axes, time against memory."""

from shlex import quote
from typing import TYPE_CHECKING

from parctl.cli.output import check_format, console, print_document
from parctl.cli.plan_view import plain_table
from parctl.planner.flops import tokens_per_step
from parctl.planner.search.found import Candidate, Found
from parctl.planner.sizes import size_text
from parctl.recipes.spec import Recipe

if TYPE_CHECKING:
    from rich.console import Console


def print_search(found: Found, recipe: Recipe, cluster: str, output: str) -> None:
    """Print what was found as a table, or as a document."""
    check_format(output, ("table", "json", "yaml"))
    if output == "table":
        show_search(found, recipe, cluster, console())
    else:
        print_document({"cluster": cluster, **found.to_json(recipe)}, output)


def show_search(found: Found, recipe: Recipe, cluster: str, terminal: "Console") -> None:
    """Print what was found for `recipe` on `cluster`, in plain ASCII."""
    best = found.best
    if best is None:
        terminal.print(f"Nothing fits {recipe.name} on {cluster}:", markup=False)
        for form in found.forms:
            terminal.print(f"  {form.axes}: {found.form_text(form)}", markup=False)
        return
    terminal.print(
        f"{recipe.name} on {cluster}: {found.looked_at:,} choices or branches of them looked at",
        markup=False,
    )
    terminal.print()
    table = plain_table("", "STEP", "TOKENS/S/GPU", "MEMORY", "CHOICE", "WHY")
    for place, item in enumerate(found.ranked, start=1):
        table.add_row(
            str(place),
            f"{item.seconds:,.3g} s",
            f"{_rate(item, recipe):,.4g}",
            size_text(item.memory.worst.total),
            item.text,
            found.reason(item),
        )
    terminal.print(table)
    terminal.print("\nThe best with other axes:")
    for form in found.forms:
        if form.axes != best.choice.model_axes:
            terminal.print(f"  {form.axes}: {found.form_text(form)}", markup=False, soft_wrap=True)
    terminal.print("\nTime against memory, nothing being both faster and smaller:")
    for item in found.front:
        size = size_text(item.memory.worst.total)
        terminal.print(f"  {item.seconds:,.4g} s  {size}  {item.text}", markup=False)
    terminal.print("\nTo use the first:")
    options = " ".join(f"--set {quote(option)}" for option in best.choice.options(recipe))
    terminal.print(f"  {options or 'it is the recipe as it is'}", markup=False, soft_wrap=True)


def _rate(item: Candidate, recipe: Recipe) -> float:
    assert recipe.train is not None
    return tokens_per_step(recipe.train) / item.seconds / item.choice.degrees.world_size
