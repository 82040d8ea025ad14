"""The outcome of looking for degrees: all of them, and why they are what they are."""

from collections.abc import Mapping
from dataclasses import dataclass

from parctl.planner.degrees import Degrees
from parctl.recipes.spec import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    recipe: Recipe  # with every degree written into `parallelism`
    degrees: Degrees
    axes: Mapping[str, int]  # mesh axes that the recipe names, outermost first
    explain: tuple[str, ...]
