"""The files of `recipes/models`, as a pydantic model.

The one idea: a preset is a model's fields, a published count to check them by, and how the model is
usually trained.
"""

from typing import Annotated

from pydantic import Field

from parctl.recipes.fields import Fields
from parctl.recipes.model_schema import ModelFields
from parctl.recipes.schema import TrainFields


class PresetFields(Fields):
    """A file of `recipes/models`: the shape, its published count, and its training defaults."""

    model: ModelFields
    published_parameters: int
    published_source: str
    published_tolerance: Annotated[float, Field(ge=0, le=0.05)]
    train: TrainFields | None = None
