"""Messages come out as they went in, over a real socket too."""

import socket

import pytest

from parctl.runtime.inference.request import Emitted, Request, Sampling
from parctl.runtime.serving.link import FrontLostError, Link
from parctl.runtime.serving.wire import (
    Hello,
    pack,
    pack_request,
    pack_tokens,
    request_from,
    tokens_from,
    unpack,
)

REQUEST = Request(
    id="7",
    prompt_tokens=(1, 2, 3),
    sampling=Sampling(
        temperature=0.5,
        stop_tokens=(0,),
        stop_strings=("\n", "end"),
        logprobs=2,
        constraint={"kind": "json_schema", "schema": {"type": "object", "required": ["a"]}},
    ),
    n=2,
    arrival=1.5,
    client="key 0",
)
TOKENS = [
    Emitted(
        request_id="7",
        sample_index=1,
        token=9,
        logprob=-0.25,
        top_logprobs=((9, -0.25), (4, float("-inf"))),
        finish_reason=None,
    ),
    Emitted(
        request_id="7",
        sample_index=0,
        token=0,
        logprob=None,
        top_logprobs=(),
        finish_reason="stop",
    ),
]


def test_a_request_and_tokens_come_back_as_they_were() -> None:
    kind, content = unpack(pack_request(REQUEST))
    assert (kind, request_from(content)) == ("add", REQUEST)
    kind, content = unpack(pack_tokens(TOKENS))
    assert (kind, tokens_from(content)) == ("tokens", TOKENS)


def test_a_link_hears_whole_lines_and_the_last_words_before_the_end() -> None:
    hello = Hello(token="t", replica=0, vocab_size=9, max_context=8, max_sequences=4)
    with socket.create_server(("127.0.0.1", 0)) as server:
        link = Link(server.getsockname(), hello)
        front, _ = server.accept()
        with front:
            assert unpack(front.makefile("rb").readline())[0] == "hello"
            assert link.receive(0.0) == []
            line = pack("cancel", ["7", None])
            front.sendall(line[:5])
            assert link.receive(0.05) == []
            front.sendall(line[5:] + pack("close", {}))
        assert link.receive(5.0) == [("cancel", ["7", None]), ("close", {})]
        with pytest.raises(FrontLostError):
            link.receive(5.0)
        link.close()


def test_nobody_to_connect_to_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
    hello = Hello(token="t", replica=0, vocab_size=9, max_context=8, max_sequences=4)
    with pytest.raises(FrontLostError, match="cannot reach"):
        Link(address, hello)
