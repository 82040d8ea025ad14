"""The models that ship with parctl, one YAML file each in `recipes/models`, and the names people
call them by.

Names are compared without case, dashes, dots and underscores, so `LLaMA-3-70B` and `llama3_70b` are
one. An alias is for a name that leaves something open; the recipe's notes then say which model was
taken.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from parctl.errors import RecipeError
from parctl.recipes.faults import Problem, listed, nearest
from parctl.recipes.models import complete_model
from parctl.recipes.spec import ModelSpec
from parctl.recipes.yaml_source import read_yaml, to_python

FOLDER = Path(__file__).parent / "models"

# What a name without a version means: the newest model of that size that ships.
ALIASES = {
    "llama-7b": "llama-2-7b",
    "llama-8b": "llama-3-8b",
    "llama-70b": "llama-3-70b",
    "llama-405b": "llama-3.1-405b",
    "llama-3-405b": "llama-3.1-405b",
    "gpt-3": "gpt-3-175b",
    "gpt-175b": "gpt-3-175b",
    "gpt-2-small": "gpt-2",
    "gpt-2-124m": "gpt-2",
    "mixtral": "mixtral-8x7b",
    "deepseek": "deepseek-v3",
    "deepseek-671b": "deepseek-v3",
    "qwen-30b-a3b": "qwen3-30b-a3b",
    "switch": "switch-base-8",
    "nemotron-340b": "nemotron-4-340b",
    "nemotron": "nemotron-4-340b",
    "vit-large": "vit-l-16",
    "vit-large-16": "vit-l-16",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    name: str
    values: dict[str, Any]  # the fields that its file gives
    model: ModelSpec
    published_parameters: int
    published_source: str
    published_tolerance: float  # relative; 0: the count is exact
    train: dict[str, Any]  # training defaults of this model


def preset_names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find_preset(name: str) -> str | None:
    """Find the preset that a name or alias means.

    >>> find_preset("LLaMA-70B")
    'llama-3-70b'
    """
    names = {_fold(preset): preset for preset in preset_names()}
    aliases = {_fold(alias): preset for alias, preset in ALIASES.items()}
    return names.get(_fold(name)) or aliases.get(_fold(name))


def is_alias(name: str) -> bool:
    """Whether a name leaves open which model it means."""
    return _fold(name) in {_fold(alias) for alias in ALIASES}


def model_preset(name: str) -> ModelSpec:
    """Return the model of a preset name or alias. Raises RecipeError for an unknown one."""
    found = find_preset(name)
    if found is None:
        problem = Problem(
            file=name, line=None, column=None, path="", message="no model has this name",
            hint=unknown_preset_hint(name),
        )  # fmt: skip
        raise RecipeError([problem])
    return load_preset(found).model


def unknown_preset_hint(name: str) -> str:
    near = nearest(name, [*preset_names(), *ALIASES])
    return f"did you mean `{near}`?" if near else f"models are: {listed(preset_names())}"


@cache
def load_preset(name: str) -> Preset:
    """Load a preset by its exact name."""
    from parctl.recipes.preset_schema import PresetFields

    source = read_yaml((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"), name)
    assert source.root is not None and not source.problems, source.problems
    fields = PresetFields.model_validate(to_python(source.root))
    values = dict(fields.model.model_dump(exclude_unset=True))
    for part in ("moe", "mla", "vision"):
        inner = getattr(fields.model, part)
        if inner is not None:
            values[part] = inner.model_dump()
    model, faults = complete_model(values, name)
    assert model is not None, faults
    return Preset(
        name=name,
        values=values,
        model=model,
        published_parameters=fields.published_parameters,
        published_source=fields.published_source,
        published_tolerance=fields.published_tolerance,
        train={} if fields.train is None else fields.train.model_dump(exclude_unset=True),
    )


def _fold(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
