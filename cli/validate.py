"""`parctl validate`: check recipe files, all of them, and report every problem at once."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from parctl.cli.options import OutputOption, SetOption

if TYPE_CHECKING:
    from parctl.recipes.faults import Problem
    from parctl.recipes.spec import Recipe


def validate(
    files: Annotated[
        list[str],
        typer.Argument(metavar="RECIPE", help="Files, shipped names or lines; `-`: stdin."),
    ],
    overrides: SetOption = [],  # noqa: B006 typer copies the default
    output: OutputOption = "table",
) -> None:
    """Check recipe files and report every problem at once."""
    from parctl.cli.output import check_format, print_document
    from parctl.errors import RecipeError
    from parctl.recipes.frozen import to_json
    from parctl.recipes.loader import load_recipe

    check_format(output, ("table", "json", "yaml"))
    problems: list[Problem] = []
    documents: list[dict[str, Any]] = []
    for file in files:
        try:
            recipe = load_recipe(file, overrides)
        except RecipeError as error:
            found = error.problems
        else:
            found = missing_files(file, recipe)
        if found:
            documents.append({"file": file, "ok": False, "problems": to_json(found)})
        else:
            model = recipe.model.name if recipe.model is not None else recipe.task
            form = recipe.parallelism.text
            documents.append(
                {"file": file, "ok": True, "problems": [], "model": model, "parallelism": form,
                 "notes": list(recipe.notes)}
            )  # fmt: skip
            if output == "table":
                typer.echo(f"{file}: ok: {model}, {form}")
        problems += found
    if output != "table":
        print_document(documents, output)
        raise typer.Exit(2 if problems else 0)
    if problems:
        raise RecipeError(problems)


def missing_files(file: str, recipe: "Recipe") -> "tuple[Problem, ...]":
    """What the recipe needs and is not here; other back ends have files where their ranks run."""
    from parctl.errors import UsageError
    from parctl.launcher.contexts import resolve_context
    from parctl.recipes.faults import Problem
    from parctl.runtime.serving.check import refuse_missing_files

    try:
        context = resolve_context(backend=None, recipe_backend=recipe.launch.backend)
        if context.backend == "local":
            refuse_missing_files(recipe)
    except UsageError as error:
        fault, hint = error.message, error.hint
        return (Problem(file=file, line=None, column=None, path="", message=fault, hint=hint),)
    return ()
