"""What `parctl recipes` shows: shipped recipes and models as rows, and the text of one recipe."""

from pathlib import Path
from typing import Any

from parctl.errors import UsageError
from parctl.recipes.faults import did_you_mean
from parctl.recipes.loader import load_recipe
from parctl.recipes.parameters import count_parameters
from parctl.recipes.presets import ALIASES, load_preset, preset_names
from parctl.recipes.shipped import shipped_path, shipped_recipes


def recipe_rows() -> list[dict[str, Any]]:
    """One row per shipped recipe."""
    rows = []
    for shipped in shipped_recipes():
        recipe = load_recipe(shipped.name)
        assert recipe.model is not None
        rows.append(
            {
                "name": shipped.name,
                "model": recipe.model.name,
                "parallelism": recipe.parallelism.text,
                "what": shipped.summary,
            }
        )
    return rows


def model_rows() -> list[dict[str, Any]]:
    """One row per model preset."""
    rows = []
    for name in preset_names():
        model = load_preset(name).model
        count = count_parameters(model)
        rows.append(
            {
                "name": name,
                "family": model.family,
                "parameters": count.total,
                "active": count.active,
                "layers": model.num_layers,
                "dim": model.dim,
                "also called": ", ".join(key for key, value in ALIASES.items() if value == name),
            }
        )
    return rows


def count_text(number: int) -> str:
    """Write a number of parameters for people.

    >>> count_text(671_026_419_200), count_text(8_030_261_248), count_text(842_496)
    ('671 B', '8.03 B', '0.842 M')
    """
    size, unit = (number / 1e9, "B") if number >= 1e9 else (number / 1e6, "M")
    return f"{size:.3g} {unit}"


def recipe_text(name: str) -> str:
    """Return a shipped recipe as it is written. Raises UsageError for an unknown name."""
    path = shipped_path(name)
    if path is None:
        hint = did_you_mean(name, [recipe.name for recipe in shipped_recipes()], "there are")
        raise UsageError(f"no shipped recipe is called `{name[:60]}`", hint=hint)
    return path.read_text(encoding="utf-8")


def copy_recipe(name: str, to: Path) -> Path:
    """Copy a shipped recipe to a new file. Raises UsageError when that cannot be made."""
    text = recipe_text(name)
    try:
        with to.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        hint = "`--to FILE` names another one"
        raise UsageError(f"`{to}` exists and is left alone", hint=hint) from error
    except OSError as error:
        message = f"cannot write `{to}`: {error.strerror}"
        raise UsageError(message, hint="`--to FILE` names another place") from error
    return to
