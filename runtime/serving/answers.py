"""What clients get: answers as the bodies and events of OpenAI's interface."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parctl.runtime.serving.ask import Ask
from parctl.runtime.serving.samples import Answer, Part, TokenLog

LEAST_LOGPROB = -9999.0  # what is written for minus infinity, which JSON has not
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """What all bodies and events of one call have in common."""

    id: str
    created: int  # seconds since 1970
    model: str
    ask: Ask

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Return the body of a call that is not streamed."""
        choices = [
            self._chat_choice(answer) if self.ask.chat else self._choice(answer)
            for answer in answers
        ]
        kind = "chat.completion" if self.ask.chat else "text_completion"
        return {**self._head(kind), "choices": choices, "usage": self.usage(answers)}

    def first_events(self, count: int) -> list[dict[str, Any]]:
        """Return what a stream begins with: of a conversation, who speaks."""
        if not self.ask.chat:
            return []
        return [self._delta(index, {"role": "assistant", "content": ""}) for index in range(count)]

    def part_event(self, index: int, part: Part, offset: int) -> dict[str, Any] | None:
        """Return the event for a part; None where it adds nothing. `offset`: characters before."""
        if not part.text and part.log is None and part.finish_reason is None:
            return None
        if self.ask.chat:
            delta = {"content": part.text} if part.text or part.log is not None else {}
            return self._delta(index, delta, part)
        logs = [] if part.log is None else [part.log]
        return {
            **self._head("text_completion"),
            "choices": [
                {
                    "index": index,
                    "text": part.text,
                    "logprobs": self._logprobs(logs, offset),
                    "finish_reason": part.finish_reason,
                }
            ],
        }

    def usage_event(self, answers: Sequence[Answer]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.ask.chat else "text_completion"
        return {**self._head(kind), "choices": [], "usage": self.usage(answers)}

    def usage(self, answers: Sequence[Answer]) -> dict[str, int]:
        made = sum(answer.num_tokens for answer in answers)
        prompt = self.ask.num_prompt_tokens
        return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _choice(self, answer: Answer) -> dict[str, Any]:
        return {
            "index": answer.index,
            "text": answer.text,
            "logprobs": self._logprobs(answer.logs, 0),
            "finish_reason": answer.finish_reason,
        }

    def _chat_choice(self, answer: Answer) -> dict[str, Any]:
        return {
            "index": answer.index,
            "message": {"role": "assistant", "content": answer.text},
            "logprobs": self._chat_logprobs(answer.logs),
            "finish_reason": answer.finish_reason,
        }

    def _delta(
        self, index: int, delta: Mapping[str, Any], part: Part | None = None
    ) -> dict[str, Any]:
        logs = [] if part is None or part.log is None else [part.log]
        return {
            **self._head("chat.completion.chunk"),
            "choices": [
                {
                    "index": index,
                    "delta": delta,
                    "logprobs": self._chat_logprobs(logs) if logs else None,
                    "finish_reason": None if part is None else part.finish_reason,
                }
            ],
        }

    def _logprobs(self, logs: Sequence[TokenLog], offset: int) -> dict[str, Any] | None:
        if self.ask.sampling.logprobs is None:
            return None
        offsets = []
        for log in logs:
            offsets.append(offset)
            offset += len(as_text(log.piece))
        return {
            "tokens": [as_text(log.piece) for log in logs],
            "token_logprobs": [finite(log.logprob) for log in logs],
            "top_logprobs": [
                {as_text(piece): finite(value) for piece, value in log.top} for log in logs
            ],
            "text_offset": offsets,
        }

    def _chat_logprobs(self, logs: Sequence[TokenLog]) -> dict[str, Any] | None:
        if self.ask.sampling.logprobs is None:
            return None
        return {
            "content": [
                {
                    **token_entry(log.piece, log.logprob),
                    "top_logprobs": [token_entry(piece, value) for piece, value in log.top],
                }
                for log in logs
            ]
        }


def token_entry(piece: bytes, logprob: float) -> dict[str, Any]:
    return {"token": as_text(piece), "logprob": finite(logprob), "bytes": list(piece)}


def as_text(piece: bytes) -> str:
    return piece.decode("utf-8", "replace")


def finite(value: float) -> float:
    return value if math.isfinite(value) else LEAST_LOGPROB


def event(content: Mapping[str, Any]) -> bytes:
    """Return a server-sent event."""
    return b"data: " + to_bytes(content) + b"\n\n"


def to_bytes(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def error_body(
    message: str, kind: str, *, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
