"""What goes into the engine and what comes out of it: requests, and the tokens made for them.

The engine knows tokens only. Text is its caller's: who detokenises also finds stop strings, and
then calls `Engine.cancel`.

A `Request` is pickled and sent to every rank, so all that it holds is plain data.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor  # the endpoint's process reads this and has no torch

FinishReason = Literal["stop", "length"]  # a stop token came (it is emitted); max_tokens are there


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen. The defaults are greedy."""

    temperature: float = 0.0  # 0: the token with the largest logit
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # divides logits of tokens that were there (1909.05858)
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()  # what is added to logits of tokens
    seed: int | None = None  # None: the leader draws one when the request is added
    max_tokens: int = 16  # new ones, per sample
    stop_tokens: tuple[int, ...] = ()
    min_tokens: int = 0  # new ones before a stop token may come
    stop_strings: tuple[str, ...] = ()  # the caller's affair
    logprobs: int | None = None  # how many alternatives are told beside the chosen one's
    constraint: Mapping[str, object] | None = None  # plain data; `runtime.inference.constraints`


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt and `n` samples of what follows."""

    id: str
    prompt_tokens: tuple[int, ...]
    sampling: Sampling
    n: int = 1
    arrival: float = 0.0  # seconds, any clock; of those that wait, earlier ones go first
    client: str = ""  # who asks; waiting clients are served equal shares of tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Emitted:
    """One new token of one sample."""

    request_id: str
    sample_index: int  # 0 ... n - 1
    token: int
    logprob: float | None  # of `token`; None unless `Sampling.logprobs` is set
    top_logprobs: tuple[tuple[int, float], ...]  # best first
    finish_reason: FinishReason | None  # not None: the sample's last token


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRow:
    """What a row of logits belongs to, for the sampler."""

    request_id: str
    sample_index: int
    sampling: Sampling  # its seed is never None here
    prompt_tokens: Sequence[int]
    output_tokens: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """The token chosen from one row."""

    token: int
    logprob: float | None
    top_logprobs: tuple[tuple[int, float], ...]


class Sampler(Protocol):
    """Chooses tokens, on one rank: that with the last pipeline stage and the whole logits."""

    def __call__(self, logits_RV: "Tensor", rows: Sequence[SampleRow]) -> list[Sampled]:
        """Return one token per row.

        The same row gives the same token in any batch: randomness follows from the seed, the
        sample's index and the number of output tokens. A row may come again after a pre-emption of
        its sequence has thrown nothing away but keys and values.
        """

    def forget(self, request_id: str, sample_index: int) -> None:
        """Drop what is kept for a sample that has ended."""
