"""From a plan to this rank's engine: its stage, its weights, its share of the memory planned."""

from pathlib import Path
from typing import Any

import torch

from parctl.planner.plan import Plan
from parctl.recipes.inference_spec import InferenceSpec
from parctl.recipes.spec import Recipe
from parctl.runtime.inference.assemble import assemble
from parctl.runtime.inference.config import EngineConfig
from parctl.runtime.inference.constraints import Grammars
from parctl.runtime.inference.detokenize import load_text
from parctl.runtime.inference.engine import Engine
from parctl.runtime.inference.sampling import BatchSampler
from parctl.runtime.parallel.mesh import RankMesh
from parctl.runtime.serving.check import newest_checkpoint

DTYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def engine_config(spec: InferenceSpec, memory: dict[str, Any]) -> EngineConfig:
    """Return the sizes that the plan computed, with the recipe's choices."""
    num_blocks = int(memory["num_blocks"])
    host = num_blocks if spec.host_blocks is None else spec.host_blocks
    return EngineConfig(
        num_blocks=num_blocks,
        block_size=spec.block_size,
        num_host_blocks=host if spec.preemption == "swap" else 0,
        max_sequences=spec.max_sequences,
        max_tokens_per_step=spec.chunk,
        max_context=spec.max_context,
        prefix_cache=spec.prefix_cache,
        preemption=spec.preemption,
    )


def build_engine(plan: Plan, mesh: RankMesh) -> Engine:
    """Build this rank's engine and read its weights. All ranks call it at the same time."""
    recipe = plan.recipe
    spec, model = recipe.inference, recipe.model
    assert spec is not None and model is not None
    stop_tokens = [
        token for token in load_text(spec.tokenizer).stop_tokens if token < model.vocab_size
    ]
    return assemble(
        model,
        engine_config(spec, dict(plan.memory)),
        BatchSampler(Grammars(spec.tokenizer, stop_tokens=stop_tokens)),
        source=weights_of(recipe),
        dtype=DTYPES[spec.precision],
        mesh=mesh,
        parallelism=recipe.parallelism,
        stages=plan.stages,
    )


def weights_of(recipe: Recipe) -> Path | int:
    """The newest checkpoint of ours, else a Hugging Face folder, else the seed to draw from."""
    saving, spec = recipe.checkpoint, recipe.inference
    assert saving is not None and spec is not None
    if saving.dir is not None:
        return newest_checkpoint(saving.dir)
    return spec.seed if saving.init_from is None else Path(saving.init_from)
