"""The inference parts of a recipe as data: the engine, prompts to complete, an endpoint to serve.

Like all of `parctl.recipes.spec`, read on cluster nodes: standard library only, nothing validates.
"""

from dataclasses import dataclass
from typing import Literal

InferencePrecision = Literal["fp32", "bf16", "fp16", "fp64"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceSpec:
    """How tokens are made, for `task: generate` and `task: serve`. Sizes are per replica."""

    engine: Literal["parctl", "vllm"]
    precision: InferencePrecision  # of weights, keys, values and products
    tokenizer: str  # `byte`, or the path of a Hugging Face tokenizer.json
    chat_template: str | None  # file; None: the one beside the tokenizer, if any
    max_context: int  # tokens of prompt and output together
    max_sequences: int  # in memory at once
    chunk: int  # tokens of a step; longer prompts take several
    block_size: int  # tokens of a block of key/value memory
    kv_blocks: int | None  # on each rank; None: as many as memory holds
    memory_fraction: float  # of a device, for weights, blocks and what a step needs
    prefix_cache: bool
    preemption: Literal["recompute", "swap"]
    host_blocks: int | None  # of host memory, for `swap`; None: as many as on the device
    seed: int  # of drawn weights
    comm_timeout_s: float  # of a collective


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSpec:
    """What requests that do not say otherwise are sampled with. The defaults are greedy."""

    max_tokens: int
    temperature: float
    top_k: int  # 0: all
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int | None  # None: another one every time
    stop: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateSpec:
    """`task: generate`: a file of prompts to a file of completions."""

    prompts: str  # .txt, a prompt per line, or .jsonl, a request per line
    output: str | None  # .jsonl; None: completions.jsonl in the run directory
    sampling: SamplingSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSpec:
    """`task: serve`: an OpenAI-compatible endpoint."""

    host: str
    port: int  # 0: any free one
    model_name: str  # what clients ask for
    api_key_from: str | None  # name in `launch.secrets`; None: everybody may ask
    max_concurrent: int  # requests that are computed or wait; more get 429
    max_body_bytes: int
    max_samples: int  # of one request: prompts x n
    drain_s: float  # for requests under way, after SIGTERM
    sampling: SamplingSpec
