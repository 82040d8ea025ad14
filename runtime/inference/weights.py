"""Weights for a stage: from a Hugging Face folder, from a checkpoint of our own, or drawn.

Each rank reads its own part of every tensor, and nothing else.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load

from parctl.recipes.frozen import from_json, to_json
from parctl.recipes.spec import ModelSpec
from parctl.runtime.checkpoint.checkpoints import read_progress, refuse_other_model
from parctl.runtime.huggingface import weights as huggingface
from parctl.runtime.inference.stage import Stage, for_inference
from parctl.runtime.model import initialize
from parctl.runtime.parallel import expert_parallel, expert_placement
from parctl.runtime.parallel.mesh import RankMesh


def load_huggingface(stage: Stage, folder: Path, mesh: RankMesh | None) -> None:
    """Fill the stage from a folder. Raises UsageError for one that does not hold the model."""
    state = stage.parameters()
    huggingface.load(folder, stage.model.model, state)
    to_places(stage, state, mesh)


def load_checkpoint(stage: Stage, checkpoint: Path, mesh: RankMesh | None) -> None:
    """Fill the stage from one checkpoint, `.../step-00000100`, of any layout."""
    saved = for_inference(from_json(ModelSpec, read_progress(checkpoint).model))
    refuse_other_model(checkpoint, to_json(saved), stage.model.model)
    state = stage.parameters()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process is what we want
        load(
            {f"model.{name}": tensor for name, tensor in state.items()},
            storage_reader=FileSystemReader(checkpoint),
            no_dist=True,
        )
    to_places(stage, state, mesh)


def draw(stage: Stage, seed: int, mesh: RankMesh | None) -> None:
    """Fill the stage with the first weights of a training with this seed."""
    own = dict(stage.model.named_parameters())
    initialize.fill(own, num_layers=stage.model.model.num_layers, seed=seed)
    to_places(stage, own, mesh)


def to_places(stage: Stage, state: Mapping[str, Tensor], mesh: RankMesh | None) -> None:
    """Move experts to where the plan wants them, where that is not their order in files."""
    if mesh is None or mesh.experts is None:
        return
    orders = {
        f"{name}.experts.{part}": moe.order
        for name, moe in expert_parallel.experts_of(stage.model)
        for part, _ in moe.experts.named_parameters()
        if moe.order is not None
    }
    expert_placement.to_places(state, orders, mesh.experts["ep"].get_group())
