"""What people may write about single nodes, as a pydantic model.

The one idea: a recipe names nodes only to say what the cluster cannot know - which are not to be
touched, which must be part of the job, and how many stay free.
"""

from typing import Annotated

from pydantic import Field

from parctl.recipes.fields import Fields, ZeroOrMore


class PlacementFields(Fields):
    """Which nodes of the cluster a job may use. Lists such as `gpu[01-08]` are expanded."""

    exclude: ZeroOrMore = Field(
        default=[], description="nodes that must not be used", examples=[["gpu-3"]]
    )
    require: ZeroOrMore = Field(
        default=[], description="nodes that must be used", examples=[["gpu-[0-1]"]]
    )
    spares: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        default=0,
        description="nodes kept free, each able to stand in for any other",
        examples=[1],
    )
