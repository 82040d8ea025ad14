"""One answer while it is being written: tokens in, text and log-probabilities out."""

from dataclasses import dataclass, field

from parctl.runtime.inference.detokenize import StopStrings, TextTokenizer
from parctl.runtime.inference.request import Emitted, FinishReason, Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLog:
    """What is told of one token."""

    piece: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one token added to an answer."""

    text: str
    log: TokenLog | None
    finish_reason: FinishReason | None


@dataclass(slots=True, kw_only=True)
class Answer:
    """A sample. `index` counts over all prompts of a call."""

    index: int
    num_tokens: int = 0
    text: str = ""
    logs: list[TokenLog] = field(default_factory=list)
    finish_reason: FinishReason | None = None


class AnswerWriter:
    """Makes text of a sample's tokens, up to a stop string or a token that ends texts.

    `before` is the text that the answer begins with.
    """

    def __init__(
        self, index: int, tokenizer: TextTokenizer, sampling: Sampling, *, before: str = ""
    ) -> None:
        self._before = before
        self.answer = Answer(index=index)
        self._tokenizer, self._sampling = tokenizer, sampling
        self._detokenizer = tokenizer.detokenizer()
        self._stops = StopStrings(sampling.stop_strings)

    @property
    def stopped_by_text(self) -> bool:
        """Whether a stop string was found: the engine does not know and has to be told."""
        return self._stops.found

    def add(self, emitted: Emitted) -> Part:
        """Must not be called again once the answer has a finish reason."""
        answer = self.answer
        assert answer.finish_reason is None
        answer.num_tokens += 1
        text, self._before = self._before, ""
        if emitted.finish_reason != "stop":  # the token that ends texts is no part of them
            text += self._until_stop(self._detokenizer.add(emitted.token))
        reason: FinishReason | None = "stop" if self._stops.found else emitted.finish_reason
        if reason is not None and not self._stops.found:
            text += self._stops.add(self._detokenizer.finish())
            text += self._stops.finish()
            reason = "stop" if self._stops.found else reason
        answer.text += text
        answer.finish_reason = reason
        log = self._log(emitted)
        if log is not None:
            answer.logs.append(log)
        return Part(text=text, log=log, finish_reason=reason)

    def _until_stop(self, text: str) -> str:
        """Look for stop strings, among what comes after the least number of tokens."""
        if self.answer.num_tokens <= self._sampling.min_tokens:
            return text
        return self._stops.add(text)

    def _log(self, emitted: Emitted) -> TokenLog | None:
        if emitted.logprob is None or self._sampling.logprobs is None:
            return None
        piece = self._tokenizer.piece
        return TokenLog(
            piece=piece(emitted.token),
            logprob=emitted.logprob,
            top=tuple((piece(token), value) for token, value in emitted.top_logprobs),
        )
