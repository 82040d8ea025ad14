"""How often each expert was chosen: the mean of a step for the log, the sum of a run for a file.

`expert_load.json` in the run directory is what `expert_placement: load-balanced` reads.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from parctl.runtime.model.router import Router

FILE = "expert_load.json"


def load_totals(routers: Sequence[Router]) -> Tensor:
    """Sums over layers, of the step so far: busiest expert over mean load, and dropped share."""
    load_L2E = torch.stack([router.load for router in routers]).double()
    chosen_LE, dropped_LE = load_L2E.unbind(dim=1)
    total_L = chosen_LE.sum(dim=1)
    return torch.stack(
        (
            (chosen_LE.amax(dim=1) / chosen_LE.mean(dim=1)).sum(),
            (dropped_LE.sum(dim=1) / total_L).sum(),
        )
    )


def write(routers: dict[int, Router], num_layers: int, path: Path) -> None:
    """Write the loads of all layers, from whichever rank has them. Collective."""
    own = {layer: router.total.tolist() for layer, router in routers.items()}
    gathered: list[dict[int, list[float]]] = [{}] * dist.get_world_size()
    dist.all_gather_object(gathered, own)
    if dist.get_rank() == 0:
        layers = {layer: load for part in gathered for layer, load in part.items()}
        path.write_text(json.dumps([layers.get(layer, []) for layer in range(num_layers)]) + "\n")
