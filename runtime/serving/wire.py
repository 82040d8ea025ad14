"""Messages between the front and the leaders of replicas: a line of JSON each, over TCP.

::

    leader                                front
      hello {token, replica, limits}  -->
                                      <-- add {request}
                                      <-- cancel [id, sample or null]
      tokens [[id, sample, ...], ...] -->
      refused [id, why]               -->
      stats {...}                     -->
      drain {}                        -->     SIGTERM came: take nothing new
                                      <-- close {}: all is answered

JSON and not pickle, since bytes that come over a network must not be able to become code.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from parctl.recipes.frozen import from_json, to_json
from parctl.runtime.inference.request import Emitted, FinishReason, Request, Sampling

MOST_LINE = 1 << 28  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """What a leader says first."""

    token: str  # that only ranks of this run know
    replica: int
    vocab_size: int
    max_context: int
    max_sequences: int


def pack(kind: str, content: Any) -> bytes:
    return json.dumps([kind, content], separators=(",", ":")).encode() + b"\n"


def unpack(line: bytes) -> tuple[str, Any]:
    kind, content = json.loads(line)
    return str(kind), content


def pack_request(request: Request) -> bytes:
    return pack("add", to_json(request))


def request_from(content: Any) -> Request:
    # by hand: the general reader would look at each of a million tokens
    return Request(
        id=content["id"],
        prompt_tokens=tuple(content["prompt_tokens"]),
        sampling=from_json(Sampling, content["sampling"]),
        n=content["n"],
        arrival=content["arrival"],
        client=content["client"],
    )


def pack_tokens(emitted: Sequence[Emitted]) -> bytes:
    return pack(
        "tokens",
        [
            [one.request_id, one.sample_index, one.token, one.logprob, one.top_logprobs]
            + ([one.finish_reason] if one.finish_reason else [])
            for one in emitted
        ],
    )


def tokens_from(content: Any) -> list[Emitted]:
    return [emitted_from(*row) for row in content]


def emitted_from(
    request_id: str,
    sample_index: int,
    token: int,
    logprob: float | None,
    top: Sequence[Sequence[Any]],
    finish_reason: FinishReason | None = None,
) -> Emitted:
    return Emitted(
        request_id=request_id,
        sample_index=sample_index,
        token=token,
        logprob=logprob,
        top_logprobs=tuple((int(other), float(value)) for other, value in top),
        finish_reason=finish_reason,
    )
