"""An engine from a model, its weights and this rank's place in a mesh.

engine = assemble(model, config, sampler, source=folder, dtype=torch.bfloat16)
engine.add(request)
while engine.unfinished():
    tokens = engine.step()
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from parctl.recipes.spec import ModelSpec, ParallelismSpec
from parctl.runtime.checkpoint.directory import NAME
from parctl.runtime.inference.config import EngineConfig
from parctl.runtime.inference.engine import Engine
from parctl.runtime.inference.packed import pack
from parctl.runtime.inference.place import Place, find_place
from parctl.runtime.inference.request import Sampler
from parctl.runtime.inference.stage import build_stage
from parctl.runtime.inference.weights import draw, load_checkpoint, load_huggingface
from parctl.runtime.parallel.mesh import RankMesh

CPU = torch.device("cpu")


def assemble(
    model: ModelSpec,
    config: EngineConfig,
    sampler: Sampler,
    *,
    source: Path | int,
    dtype: torch.dtype,
    device: torch.device = CPU,
    mesh: RankMesh | None = None,
    parallelism: ParallelismSpec | None = None,
    stages: Sequence[Sequence[int]] | None = None,
) -> Engine:
    """Build this rank's engine. All ranks of a mesh call it at the same time.

    `source` is a Hugging Face folder, one checkpoint of our own (`.../step-00000100`), or the seed
    of random weights. Without a mesh the rank is alone, on `device`; with one on the mesh's.
    `stages` are the layers of every pipeline stage, one per rank along pp (`plan.stages`).
    """
    place = Place(device=device) if mesh is None else find_place(mesh)
    layers = range(model.num_layers) if stages is None else stages[place.stage]
    assert stages is None or len(stages) == place.num_stages, "a rank has one stage"
    stage = build_stage(model, parallelism, config, place, mesh, layers, dtype)
    if isinstance(source, int):
        draw(stage, source, mesh)
    elif NAME.fullmatch(source.name):
        load_checkpoint(stage, source, mesh)
    else:
        load_huggingface(stage, source, mesh)
    pack(stage.model)
    return Engine(stage, config, place, sampler)
