"""What a client may send: the bodies of completions, as pydantic models.

The OpenAPI document is generated from these, so it is true to what is accepted. Unknown fields are
refused: a setting that is silently ignored would answer another question than was asked. Accepted
without effect are only those that say something about the caller (`user`, `metadata`, ...).
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MOST_LOGPROBS = 20
MOST_STOPS = 16
MOST_STOP_TOKENS = 256
Text = Annotated[str, Field(max_length=1 << 24)]
Token = Annotated[int, Field(ge=0, lt=1 << 31)]
Stop = Annotated[str, Field(min_length=1, max_length=1024)]
TokenName = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
Bias = Annotated[float, Field(ge=-100, le=100)]
OTHER_KIND = ("string_type", "list_type", "int_type")  # what pydantic says of another kind of value
# fields of OpenAI's that are refused, and why
NOT_THERE: Mapping[str, str] = {
    "suffix": "texts are continued at their end only; leave it out",
    "tools": "tools are not called; leave it out, or ask for JSON with `response_format`",
    "tool_choice": "tools are not called; leave it out",
    "functions": "functions are not called; leave it out",
    "function_call": "functions are not called; leave it out",
    "modalities": "answers are text; leave it out",
    "audio": "answers are text; leave it out",
}


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class StreamOptions(Body):
    include_usage: bool | None = Field(default=None, description="a last chunk with token counts")


class JsonSchema(Body):
    name: Annotated[str, Field(max_length=64)] | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """The form of the output. `json_schema` needs the schema beside it."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class SamplingBody(Body):
    """What both kinds of completion share."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    n: Annotated[int, Field(ge=1, le=65536)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    logit_bias: Annotated[dict[TokenName, Bias], Field(max_length=1024)] | None = Field(
        default=None, description="added to the logits of these tokens"
    )
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    ignore_eos: bool | None = Field(
        default=None, description="go on after the tokens that end a text"
    )
    min_tokens: Annotated[int, Field(ge=0, lt=1 << 31)] | None = Field(
        default=None, description="before these are there, nothing ends the text"
    )
    stop_token_ids: Annotated[list[Token], Field(max_length=MOST_STOP_TOKENS)] | None = Field(
        default=None, description="tokens that end the text too"
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=1 << 31)] | None = Field(
        default=None, description="draw from the k likeliest tokens; 0 or -1: all"
    )
    min_p: Annotated[float, Field(ge=0, lt=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    response_format: ResponseFormat | None = None
    guided_regex: Annotated[str, Field(max_length=4096)] | None = Field(
        default=None, description="the output matches this regular expression"
    )
    guided_choice: (
        Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)] | None
    ) = Field(default=None, description="the output is one of these texts")
    user: str | None = Field(default=None, description="no effect")
    metadata: dict[str, str] | None = Field(default=None, description="no effect")
    store: bool | None = Field(default=None, description="no effect: nothing is kept")
    service_tier: str | None = Field(default=None, description="no effect")


class CompletionBody(SamplingBody):
    """The body of `/v1/completions`."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1)]
        | Annotated[list[Token], Field(min_length=1)]
        | Annotated[list[Annotated[list[Token], Field(min_length=1)]], Field(min_length=1)]
    )
    max_tokens: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = Field(
        default=None, description="alternatives told beside each token"
    )
    echo: bool | None = Field(
        default=None, description="the prompt before the answer; not together with logprobs"
    )
    suffix: None = None
    best_of: Annotated[int, Field(ge=1, le=65536)] | None = Field(
        default=None, description="as many as `n`: answers are not ranked"
    )


class TextPart(Body):
    type: Literal["text"]
    text: Text


class MessageBody(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[TextPart], Field(min_length=1)] | None = None
    name: Annotated[str, Field(max_length=256)] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class ChatBody(SamplingBody):
    """The body of `/v1/chat/completions`."""

    messages: Annotated[list[MessageBody], Field(min_length=1, max_length=65536)]
    max_tokens: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = Field(
        default=None, description="tools are not called"
    )
    tool_choice: Literal["none"] | None = None
    parallel_tool_calls: bool | None = Field(default=None, description="no effect")


def first_fault(error: ValidationError) -> tuple[str, str | None]:
    """Return what is wrong with a body in words, and the field at fault if it is one."""
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    first = errors[0]
    loc = first["loc"]
    if first["type"] == "json_invalid" or not loc:
        return f"the body is not what is expected: {first['msg']}", None
    branch = next((place for place, step in enumerate(loc) if is_branch(step)), None)
    if branch is not None:  # a field of several kinds: what is said of the kind that comes nearest
        own = [one for one in errors if one["loc"][:branch] == loc[:branch]]
        first = max(own, key=lambda one: (len(one["loc"]), one["type"] not in OTHER_KIND))
        loc = tuple(step for step in first["loc"] if not is_branch(step))
    steps = [str(step) for step in loc]
    message = NOT_THERE.get(steps[0], first["msg"])
    if steps[0] == "messages" and steps[-1] == "type":
        message = "texts are all that is read; a part is {'type': 'text', 'text': ...}"
    return f"{'.'.join(steps)[:200]}: {message}", steps[0][:100]


def is_branch(step: int | str) -> bool:
    """Whether a step of a place is pydantic's name of one of the kinds that a field may have."""
    return isinstance(step, str) and (step.startswith("constrained-") or step.endswith("]"))
