"""Memory of one rank that makes tokens: weights, and blocks of keys and values in what they leave.

    per token and layer   2 K H e           keys and values of the K heads of a rank, H wide
                          (c + r) e         latent attention: one compressed row, on every tp rank
    block                 block_size tokens of all layers of the rank
    a sequence's block    cp times as many tokens, since cp ranks share a sequence
    blocks                (usable - weights - activations - logits - buffers) / (block + gathered)

`gathered`: attention without a paged kernel copies the blocks of one layer side by side before it
reads them, of all running sequences at worst. All ranks of a replica have equally many blocks,
those of the fullest stage, because one scheduler deals them out.

Where all layers have a sliding window, a sequence keeps no more than that and a chunk, whatever its
length; where some see everything, all its blocks.

`max_sequences` at full context follows from the blocks; the engine admits requests by the same
number. Replicas (`dp`) hold the same and change nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from parctl.planner import shards
from parctl.planner.degrees import Degrees
from parctl.planner.memory import CPU_BUFFER_BYTES, GPU_BUFFER_BYTES
from parctl.planner.shards import ceil_div
from parctl.planner.staged_memory import StagedMemory
from parctl.planner.stages import split_layers
from parctl.recipes.inference_spec import InferenceSpec
from parctl.recipes.parameters import count_parameters
from parctl.recipes.spec import ModelSpec, Recipe

ELEMENT = {"fp64": 8, "fp32": 4, "bf16": 2, "fp16": 2}  # bytes
SAMPLED = 4  # bytes of a logit when it is sampled from
COPIES = 3  # of the logits of a step: as gathered, as changed by penalties, sorted


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceStage:
    """Bytes on each rank of one pipeline stage."""

    stage: int
    layers: int
    parameters: int
    block_bytes: int  # a block of all its layers
    weights: int
    kv_cache: int
    activations: int
    logits: int
    buffers: int

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.activations + self.logits + self.buffers


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceMemory(StagedMemory[InferenceStage]):
    """What `task: generate` and `task: serve` need. Blocks and sequences are of one replica.

    It fits if the weights and one sequence of the longest context find room.
    """

    num_blocks: int
    tokens_per_block: int  # of a sequence, over its cp ranks
    needed_blocks: int  # for one sequence of the longest context
    max_context: int

    @property
    def num_tokens(self) -> int:
        """How many tokens the blocks hold."""
        return self.num_blocks * self.tokens_per_block

    @property
    def max_sequences(self) -> int:
        """Sequences of the longest context that are in memory at once."""
        return self.num_blocks // self.needed_blocks

    def own_json(self) -> dict[str, Any]:
        return {
            "num_blocks": self.num_blocks,
            "tokens_per_block": self.tokens_per_block,
            "num_tokens": self.num_tokens,
            "max_context": self.max_context,
            "max_sequences": self.max_sequences,
        }


def estimate_inference_memory(
    recipe: Recipe,
    degrees: Degrees,
    *,
    stages: Sequence[Sequence[int]] | None = None,
    device_bytes: int | None,
    kind: Literal["gpu", "cpu"],
) -> InferenceMemory:
    """Estimate the memory of `recipe` split by `degrees`, and the blocks that it leaves room for.

    Where nothing limits them (unknown memory, or that of a host) there are as many blocks as
    `max_sequences` of the longest context need.
    """
    model, spec = recipe.model, recipe.inference
    assert model is not None and spec is not None
    bare = [
        _bare_stage(model, spec, degrees, layers, number, len(chunks), kind)
        for chunks in (stages or split_layers(model, degrees.pp),)
        for number, layers in enumerate(chunks)
    ]
    tokens_per_block = spec.block_size * degrees.cp
    needed = _blocks_at_once(model, spec, tokens_per_block)
    blocks = spec.kv_blocks
    if blocks is None:
        wanted = spec.max_sequences * needed
        usable = None if device_bytes is None else int(device_bytes * spec.memory_fraction)
        room = None if usable is None else min(_blocks_in(stage, usable) for stage in bare)
        blocks = wanted if room is None else min(room, wanted) if kind == "cpu" else room
        blocks = max(blocks, needed)
    return InferenceMemory(
        stages=tuple(
            replace(stage, kv_cache=blocks * (stage.block_bytes + _gathered(stage)))
            for stage in bare
        ),
        device_bytes=device_bytes,
        usable_fraction=spec.memory_fraction,
        kind=kind,
        num_blocks=blocks,
        tokens_per_block=tokens_per_block,
        needed_blocks=needed,
        max_context=spec.max_context,
    )


def kv_bytes_per_token(model: ModelSpec, degrees: Degrees, element: int) -> int:
    """Bytes that one token takes in one layer on one rank that holds it.

    Llama 3 70B over tp 8 has one of eight heads per rank: 2 x 1 x 128 x 2 = 512.
    """
    if model.mla is not None:
        return (model.mla.kv_lora_rank + model.mla.qk_rope_head_dim) * element
    return 2 * ceil_div(model.num_kv_heads, degrees.tp) * model.head_dim * element


def _blocks_at_once(model: ModelSpec, spec: InferenceSpec, tokens_per_block: int) -> int:
    """Blocks that one sequence of the longest context holds at most."""
    every = ceil_div(spec.max_context, tokens_per_block)
    if model.kept_window is None:
        return every
    # a window and a chunk may begin in the middle of a block
    return min(every, ceil_div(model.kept_window - 1 + spec.chunk, tokens_per_block) + 1)


def _bare_stage(
    model: ModelSpec,
    spec: InferenceSpec,
    degrees: Degrees,
    layers: Sequence[int],
    number: int,
    num_stages: int,
    kind: Literal["gpu", "cpu"],
) -> InferenceStage:
    """A stage without blocks."""
    model = replace(model, num_mtp_layers=0)  # further predictions exist for training only
    element = ELEMENT[spec.precision]
    last = number == num_stages - 1
    shard = shards.stage_shard(
        model, count_parameters(model), layers, degrees, first=number == 0, last=last
    )
    tokens = ceil_div(max(spec.chunk, spec.max_sequences), degrees.cp)
    width = model.ffn_dim
    if model.moe is not None:
        width = max(width, model.moe.expert_ffn_dim * (model.moe.top_k + 1))
    heads = 2 * ceil_div(model.num_heads, degrees.tp) * model.head_dim
    return InferenceStage(
        stage=number,
        layers=len(layers),
        parameters=shard.total,
        block_bytes=len(layers) * spec.block_size * kv_bytes_per_token(model, degrees, element),
        weights=shard.total * element,
        kv_cache=0,
        # residual, its norm and the sum of both, queries and what attention returns, the MLP
        activations=element * tokens * (3 * model.dim + heads + 3 * ceil_div(width, degrees.tp)),
        logits=COPIES * SAMPLED * spec.max_sequences * model.vocab_size if last else 0,
        buffers=GPU_BUFFER_BYTES if kind == "gpu" else CPU_BUFFER_BYTES,
    )


def _gathered(stage: InferenceStage) -> int:
    """Bytes per block that attention copies, of one layer at a time."""
    return ceil_div(stage.block_bytes, stage.layers)


def _blocks_in(stage: InferenceStage, usable: int) -> int:
    return max(0, (usable - stage.total) // (stage.block_bytes + _gathered(stage)))
