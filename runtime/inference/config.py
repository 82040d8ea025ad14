"""How the engine is set up: sizes that the plan computes, and choices of the recipe."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Sizes are per replica: the ranks that work on the same requests."""

    num_blocks: int  # of key/value memory on each rank
    block_size: int = 16  # tokens of a block that one rank holds; cp times as many in all
    num_host_blocks: int = 0  # of host memory on each rank, for `preemption: swap`
    max_sequences: int = 64  # in memory at once
    max_tokens_per_step: int = 512  # longer prompts are computed in chunks
    max_context: int | None = None  # tokens of prompt and output together; None: the model's
    prefix_cache: bool = True
    # what becomes of the newest sequence when memory runs out
    preemption: Literal["recompute", "swap"] = "recompute"
