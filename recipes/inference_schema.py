"""What people may write under `inference`, `generate` and `serve`."""

from typing import Annotated, Literal

from pydantic import Field

from parctl.recipes.fields import (
    Count,
    CountOrZero,
    Fields,
    Fraction,
    Text,
    VariableName,
)
from parctl.recipes.inference_spec import InferencePrecision

Stops = Annotated[list[Text], Field(max_length=16)]


class InferenceFields(Fields):
    """The engine behind `task: generate` and `task: serve`. Sizes are per replica."""

    engine: Literal["parctl", "vllm"] = Field(
        default="parctl", description="vllm: hand the placement to an installed vLLM",
        examples=["vllm"],
    )  # fmt: skip
    precision: InferencePrecision | None = Field(
        default=None,
        description="of weights, keys, values and products; default the preset's, or bf16",
        examples=["bf16"],
    )
    tokenizer: Text | None = Field(
        default=None,
        description="`byte`, or the path of a tokenizer.json; default: the one in the folder of the"
        " weights, else byte",
        examples=["models/llama/tokenizer.json"],
    )
    chat_template: Text | None = Field(
        default=None,
        description="Jinja file that writes a conversation as a prompt; default: the one beside the"
        " tokenizer, else `role: text` lines",
        examples=["chat.jinja"],
    )
    max_context: Count | None = Field(
        default=None,
        description="tokens of prompt and output together; default `model.max_seq_len`",
        examples=[8192],
    )
    max_sequences: Annotated[int, Field(ge=1, le=65536)] = Field(
        default=64, description="sequences in memory at once", examples=[256]
    )
    chunk: Annotated[int, Field(ge=1, le=1 << 20)] = Field(
        default=512, description="tokens of a step; longer prompts take several", examples=[2048]
    )
    block_size: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=16, description="tokens of a block of key/value memory", examples=[16]
    )
    kv_blocks: Count | None = Field(
        default=None, description="on each rank; default: as many as memory holds", examples=[4096]
    )
    memory_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.9,
        description="of a device, for weights, blocks and what a step needs",
        examples=[0.9],
    )
    prefix_cache: bool = Field(
        default=True, description="keep blocks of common beginnings of prompts", examples=[False]
    )
    preemption: Literal["recompute", "swap"] = Field(
        default="recompute",
        description="what becomes of the newest sequence when memory runs out",
        examples=["swap"],
    )
    host_blocks: CountOrZero | None = Field(
        default=None,
        description="of host memory, for `preemption: swap`; default: as many as on the device",
        examples=[1024],
    )
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = Field(
        default=0, description="of weights, where none are read", examples=[0]
    )
    comm_timeout_s: Annotated[float, Field(gt=0, le=1e6)] = Field(
        default=300.0, description="of a collective, seconds", examples=[60.0]
    )


class SamplingFields(Fields):
    """What requests that do not say otherwise are sampled with."""

    max_tokens: Count = Field(default=128, description="new ones, per sample", examples=[128])
    temperature: Annotated[float, Field(ge=0, le=2)] = Field(
        default=0.0, description="0: the likeliest token", examples=[0.7]
    )
    top_k: CountOrZero = Field(
        default=0, description="draw from the k likeliest tokens; 0: all", examples=[40]
    )
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0,
        description="draw from the likeliest tokens that hold this probability together",
        examples=[0.95],
    )
    min_p: Fraction = Field(
        default=0.0,
        description="least probability of a token, as a share of the likeliest one's",
        examples=[0.05],
    )
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = Field(
        default=1.0, description="above 1: tokens that were there are less likely", examples=[1.1]
    )
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = Field(
        default=0.0, description="off the logits of tokens in the output", examples=[0.5]
    )
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = Field(
        default=0.0, description="off them for each time", examples=[0.5]
    )
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] | None = Field(
        default=None, description="default: another one every time", examples=[7]
    )
    stop: Stops = Field(
        default=[], description="texts that end a completion, left out of it", examples=[["\n\n"]]
    )


class GenerateFields(Fields):
    """`task: generate`: a file of prompts to a file of completions."""

    prompts: Text = Field(
        description=".txt, a prompt per line, or .jsonl, the body of a request per line;"
        " `corpus://prompts`: a few that parctl ships",
        examples=["prompts.jsonl"],
    )
    output: Text | None = Field(
        default=None,
        description=".jsonl; default: `completions.jsonl` in the run directory",
        examples=["completions.jsonl"],
    )
    sampling: SamplingFields = Field(
        default_factory=SamplingFields,
        description="where a line of .jsonl does not say otherwise",
        examples=[{"max_tokens": 64}],
    )


class ServeFields(Fields):
    """`task: serve`: an OpenAI-compatible endpoint."""

    host: Text = Field(
        default="127.0.0.1", description="address to listen on; `0.0.0.0`: all", examples=["::1"]
    )
    port: Annotated[int, Field(ge=0, le=65535)] = Field(
        default=8000, description="0: any free one", examples=[8000]
    )
    model_name: Text | None = Field(
        default=None, description="what clients ask for; default the model's", examples=["llama"]
    )
    api_key_from: VariableName | None = Field(
        default=None,
        description="name in `launch.secrets` whose value is the key, or several, one per line;"
        " default: everybody may ask",
        examples=["API_KEY"],
    )
    max_concurrent: Count = Field(
        default=256, description="requests under way; more are told to wait (429)", examples=[256]
    )
    max_body_bytes: Annotated[int, Field(ge=1024, le=1 << 30)] = Field(
        default=1 << 20, description="of a request", examples=[1 << 20]
    )
    max_samples: Annotated[int, Field(ge=1, le=65536)] = Field(
        default=128, description="of one request: prompts times n", examples=[16]
    )
    drain_s: Annotated[float, Field(ge=0, le=86400)] = Field(
        default=20.0, description="for requests under way after SIGTERM, seconds", examples=[20.0]
    )
    sampling: SamplingFields = Field(
        default_factory=SamplingFields,
        description="where a request does not say otherwise",
        examples=[{"temperature": 0.7}],
    )
