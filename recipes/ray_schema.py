"""What people may write about a run on Ray, as a pydantic model, and the spec made of it.

The one idea: how long to wait for nodes, and what to do when one does not come back.
"""

from typing import Annotated

from pydantic import Field

from parctl.recipes.fields import Fields
from parctl.recipes.ray_spec import DEFAULTS, RaySpec

Seconds = Annotated[float, Field(ge=0, le=30 * 86400)]


class RayFields(Fields):
    """For `-b ray`."""

    wait_s: Seconds = Field(
        default=DEFAULTS.wait_s, description="how long nodes are waited for", examples=[3600.0]
    )
    min_nodes: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="a restart may use as few, with less data parallelism; default: no fewer",
        examples=[3],
    )
    rejoin_s: Seconds = Field(
        default=DEFAULTS.rejoin_s,
        description="how long a lost node may come back before `min_nodes` counts",
        examples=[60.0],
    )
    preflight: bool = Field(
        default=DEFAULTS.preflight,
        description="test every node first, and name the one that is bad",
        examples=[True],
    )


def build_ray(fields: RayFields | None) -> RaySpec | None:
    if fields is None:
        return None
    return RaySpec(
        wait_s=float(fields.wait_s),
        min_nodes=fields.min_nodes,
        rejoin_s=float(fields.rejoin_s),
        preflight=fields.preflight,
    )
