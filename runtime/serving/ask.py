"""From a checked body to what the engine is asked: prompts as tokens, and how to sample."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from parctl.errors import UsageError
from parctl.recipes.inference_spec import SamplingSpec
from parctl.runtime.inference.chat import ChatTemplate
from parctl.runtime.inference.detokenize import TextTokenizer
from parctl.runtime.inference.grammar import compile_constraint
from parctl.runtime.inference.request import Sampling
from parctl.runtime.serving.bodies import ChatBody, CompletionBody, SamplingBody

SEEDS = 1 << 64


class BadRequestError(UsageError):
    """The client's fault. `param` is the field; `code` is a word that programs can look at."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param, self.code = param, code


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One call: every prompt is answered `n` times."""

    prompts: tuple[tuple[int, ...], ...]
    n: int
    sampling: Sampling
    chat: bool
    stream: bool
    include_usage: bool
    echoed: tuple[str, ...] = ()  # the prompts as texts, where answers begin with them

    def text_before(self, index: int) -> str:
        """Return what the answer begins with that is `index`-th over all prompts."""
        return self.echoed[index // self.n] if self.echoed else ""

    @property
    def num_prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the engine takes."""

    vocab_size: int
    max_context: int
    max_sequences: int
    max_samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Reads bodies for one model."""

    tokenizer: TextTokenizer
    tokenizer_name: str  # `byte`, or a path
    template: ChatTemplate
    defaults: SamplingSpec

    def completion(self, body: CompletionBody, limits: Limits) -> Ask:
        given: Any = body.prompt
        one = isinstance(given, str) or isinstance(given[0], int)  # a text, or its tokens
        prompts: Sequence[str | Sequence[int]] = [given] if one else given
        sampling = self._sampling(body, limits, max_tokens=body.max_tokens, logprobs=body.logprobs)
        if body.best_of is not None and body.best_of != (body.n or 1):
            message = f"best_of = {body.best_of} and n = {body.n or 1}: answers are not ranked"
            raise BadRequestError(f"{message}, so both must be equal", param="best_of")
        if body.echo and body.logprobs is not None:
            message = "echo with logprobs: log-probabilities of prompts are not computed"
            raise BadRequestError(message, param="echo")
        ask = self._ask(body, prompts, sampling, limits, chat=False)
        if not body.echo:
            return ask
        texts = (one if isinstance(one, str) else self._text_of(one) for one in prompts)
        return replace(ask, echoed=tuple(texts))

    def _text_of(self, tokens: Sequence[int]) -> str:
        detokenizer = self.tokenizer.detokenizer()
        return "".join(map(detokenizer.add, tokens)) + detokenizer.finish()

    def chat(self, body: ChatBody, limits: Limits) -> Ask:
        messages = [
            {"role": message.role, "content": message.text}
            | ({} if message.name is None else {"name": message.name})
            for message in body.messages
        ]
        prompt = self.tokenizer.encode(self.template.render(messages), whole=False)
        if body.top_logprobs and not body.logprobs:
            raise BadRequestError("top_logprobs needs logprobs: true", param="top_logprobs")
        sampling = self._sampling(
            body,
            limits,
            max_tokens=body.max_completion_tokens or body.max_tokens,
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        )
        return self._ask(body, [prompt], sampling, limits, chat=True)

    def _ask(
        self,
        body: SamplingBody,
        prompts: Sequence[str | Sequence[int]],
        sampling: Sampling,
        limits: Limits,
        *,
        chat: bool,
    ) -> Ask:
        if body.stream_options is not None and not body.stream:
            raise BadRequestError("stream_options needs stream: true", param="stream_options")
        tokens = [
            tuple(self.tokenizer.encode(prompt, whole=True) if isinstance(prompt, str) else prompt)
            for prompt in prompts
        ]
        ask = Ask(
            prompts=tuple(tokens),
            n=body.n or 1,
            sampling=sampling,
            chat=chat,
            stream=bool(body.stream),
            include_usage=bool(body.stream_options and body.stream_options.include_usage),
        )
        refuse_beyond(ask, limits)
        return ask

    def _sampling(
        self,
        body: SamplingBody,
        limits: Limits,
        *,
        max_tokens: int | None,
        logprobs: int | None,
    ) -> Sampling:
        defaults = self.defaults

        def pick(name: str) -> float:
            given = getattr(body, name)
            return float(getattr(defaults, name) if given is None else given)

        stop = body.stop if body.stop is not None else defaults.stop
        seed = body.seed if body.seed is not None else defaults.seed
        stop_tokens = tuple(
            token for token in self.tokenizer.stop_tokens if token < limits.vocab_size
        )
        ends = stops_of(body, stop_tokens, limits)
        constraint = constraint_of(body, self.tokenizer_name, stop_tokens)
        given = {"ignore_eos": body.ignore_eos, "min_tokens": body.min_tokens}
        if constraint is not None and (wrong := [name for name in given if given[name]]):
            message = f"{wrong[0]} with a form of the output: it ends where the form does"
            raise BadRequestError(message, param=wrong[0])
        most = max_tokens or defaults.max_tokens
        if (body.min_tokens or 0) > most:
            message = f"min_tokens = {body.min_tokens} is more than max_tokens = {most}"
            raise BadRequestError(message, param="min_tokens")
        return Sampling(
            temperature=pick("temperature"),
            top_k=max(0, defaults.top_k if body.top_k is None else body.top_k),
            top_p=pick("top_p"),
            min_p=pick("min_p"),
            repetition_penalty=pick("repetition_penalty"),
            presence_penalty=pick("presence_penalty"),
            frequency_penalty=pick("frequency_penalty"),
            logit_bias=bias_of(body, limits),
            seed=None if seed is None else seed % SEEDS,
            max_tokens=most,
            min_tokens=body.min_tokens or 0,
            stop_strings=(stop,) if isinstance(stop, str) else tuple(stop),
            logprobs=logprobs,
            constraint=constraint,
            stop_tokens=ends,
        )


def stops_of(body: SamplingBody, own: tuple[int, ...], limits: Limits) -> tuple[int, ...]:
    """Return the tokens that end a text: the model's `own`, unless ignored, and the body's."""
    asked = body.stop_token_ids or []
    if asked and max(asked) >= limits.vocab_size:
        raise BadRequestError(
            f"token {max(asked)} is not one of {limits.vocab_size}", param="stop_token_ids"
        )
    return tuple(dict.fromkeys((*(() if body.ignore_eos else own), *asked)))


def bias_of(body: SamplingBody, limits: Limits) -> tuple[tuple[int, float], ...]:
    bias = sorted((int(token), value) for token, value in (body.logit_bias or {}).items())
    if bias and bias[-1][0] >= limits.vocab_size:
        raise BadRequestError(
            f"token {bias[-1][0]} is not one of {limits.vocab_size}", param="logit_bias"
        )
    return tuple(bias)


def constraint_of(
    body: SamplingBody, tokenizer: str, stop_tokens: tuple[int, ...]
) -> Mapping[str, object] | None:
    """Return the form that the output must have; raises BadRequestError for one that cannot be."""
    asked: dict[str, Mapping[str, object]] = {}
    if body.guided_regex is not None:
        asked["guided_regex"] = {"kind": "regex", "pattern": body.guided_regex}
    if body.guided_choice is not None:
        asked["guided_choice"] = {"kind": "choice", "texts": list(body.guided_choice)}
    form = body.response_format
    if form is not None and form.type == "json_object":
        asked["response_format"] = {"kind": "json_object"}
    if form is not None and form.type == "json_schema":
        schema = None if form.json_schema is None else form.json_schema.schema_
        if schema is None:
            raise BadRequestError("json_schema.schema is missing", param="response_format")
        asked["response_format"] = {"kind": "json_schema", "schema": schema}
    if len(asked) > 1:
        raise BadRequestError(f"found {' and '.join(asked)}: the output can have one form")
    for param, constraint in asked.items():
        try:
            compile_constraint(constraint, tokenizer, stop_tokens)
        except UsageError as error:
            raise BadRequestError(error.message, param=param) from error
        return constraint
    return None


def refuse_beyond(ask: Ask, limits: Limits) -> None:
    """Raise BadRequestError for what the engine would not take."""
    if ask.n > limits.max_sequences:
        raise BadRequestError(
            f"n = {ask.n}, and {limits.max_sequences} sequences are in memory at once", param="n"
        )
    if len(ask.prompts) * ask.n > limits.max_samples:
        raise BadRequestError(
            f"{len(ask.prompts)} prompts x n = {ask.n} is more than {limits.max_samples}", param="n"
        )
    param = "messages" if ask.chat else "prompt"
    for prompt in ask.prompts:
        if not prompt:
            raise BadRequestError("the prompt has no tokens", param=param)
        if len(prompt) >= limits.max_context:
            raise BadRequestError(
                f"the prompt has {len(prompt)} tokens, and prompt and output together at most "
                f"{limits.max_context}",
                param=param,
                code="context_length_exceeded",
            )
        if max(prompt) >= limits.vocab_size:
            raise BadRequestError(
                f"token {max(prompt)} is not one of {limits.vocab_size}", param=param
            )
