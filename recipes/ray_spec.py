"""`launch.ray` as data: what the driver on Ray does beyond any other back end."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RaySpec:
    wait_s: float  # how long nodes are waited for, at the start and after each loss of one
    min_nodes: int | None  # a restart may use as few, with less data parallelism; None: no fewer
    rejoin_s: float  # how long a lost node may come back before the run goes on with fewer
    preflight: bool  # every node multiplies and reduces first; the first that is bad is named


DEFAULTS = RaySpec(wait_s=3600.0, min_nodes=None, rejoin_s=60.0, preflight=False)
