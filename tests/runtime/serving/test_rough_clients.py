"""Clients that are many, slow, gone, wrong or hostile: the endpoint goes on."""

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import httpx
import pytest
from tests.runtime.serving.endpoint import MODEL, Endpoint


@pytest.fixture(scope="module")
def client(endpoint: Endpoint) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {endpoint.key}"}
    with httpx.Client(base_url=endpoint.root, headers=headers, timeout=60) as client:
        yield client


def engine_is_idle(client: httpx.Client) -> bool:
    values = dict(
        line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[0] != "#"
    )
    return (
        float(values["parctl_requests_under_way"]) == 0
        and float(values['parctl_engine_running{replica="0"}']) == 0
        and float(values['parctl_engine_free_blocks{replica="0"}'])
        == float(values['parctl_engine_num_blocks{replica="0"}'])
    )


def until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def call(endpoint: Endpoint, **fields: object) -> bytes:
    """A call as bytes, for sockets that are used as no client should."""
    body = json.dumps({"model": MODEL, "prompt": "a", "max_tokens": 4, **fields}).encode()
    return (
        f"POST /v1/completions HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {endpoint.key}\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode() + body


def address(endpoint: Endpoint) -> tuple[str, int]:
    parts = urlsplit(endpoint.url)
    assert parts.hostname and parts.port
    return parts.hostname, parts.port


def test_a_thousand_connections_at_once_are_all_answered(
    endpoint: Endpoint, client: httpx.Client
) -> None:
    """64 calls are let in at a time, so most are told to come again; none is dropped."""

    async def one(start: asyncio.Event) -> int:
        reader, writer = await asyncio.open_connection(*address(endpoint))
        await start.wait()
        writer.write(call(endpoint))
        status = int((await asyncio.wait_for(reader.readline(), 90)).split()[1])
        writer.close()
        return status

    async def all_of_them() -> list[int]:
        start = asyncio.Event()
        tasks = [asyncio.create_task(one(start)) for _ in range(1000)]
        await asyncio.sleep(1.0)  # all are connected before any asks
        start.set()
        return await asyncio.gather(*tasks)

    statuses = asyncio.run(all_of_them())
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 64
    until(lambda: engine_is_idle(client))


def test_who_is_told_to_wait_is_told_how_long(endpoint: Endpoint, client: httpx.Client) -> None:
    async def crowd() -> list[httpx.Response]:
        async with httpx.AsyncClient(
            base_url=endpoint.root, headers=dict(client.headers), timeout=60
        ) as many:
            body = {"model": MODEL, "prompt": "a", "max_tokens": 32}
            return await asyncio.gather(
                *(many.post("/v1/completions", json=body) for _ in range(90))
            )

    refused = [answer for answer in asyncio.run(crowd()) if answer.status_code == 429]
    assert refused
    assert all(answer.headers["retry-after"] == "1" for answer in refused)
    assert refused[0].json()["error"]["code"] == "too_many_requests"


def test_a_slow_reader_gets_everything_and_stops_nobody(
    endpoint: Endpoint, client: httpx.Client
) -> None:
    with socket.create_connection(address(endpoint), timeout=60) as slow:
        slow.sendall(call(endpoint, stream=True, max_tokens=40))
        began = time.monotonic()
        answer = client.post("/v1/completions", json={"model": MODEL, "prompt": "b"})
        assert answer.status_code == 200
        read = b""
        while not read.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
            read += slow.recv(64)
            time.sleep(0.002)
        assert time.monotonic() - began > 0.1
    assert read.count(b"text_completion") >= 20  # an event per token that adds text


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_leaves_nothing_running(
    endpoint: Endpoint, client: httpx.Client, stream: bool
) -> None:
    until(lambda: engine_is_idle(client))
    made = made_tokens(client)
    for _ in range(8):
        with socket.create_connection(address(endpoint), timeout=60) as gone:
            gone.sendall(call(endpoint, stream=stream, max_tokens=120))
    until(lambda: engine_is_idle(client))
    assert made_tokens(client) - made < 8 * 120


def made_tokens(client: httpx.Client) -> float:
    for line in client.get("/metrics").text.splitlines():
        if line.startswith('parctl_engine_output_tokens_total{replica="0"}'):
            return float(line.rsplit(" ", 1)[1])
    raise AssertionError("no such metric")


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"", {}, 400),
        (b"{", {}, 400),
        (b"[]", {}, 400),
        (b"null", {}, 400),
        (b'{"model": NaN}', {}, 400),
        (b"\xff\xfe\x00", {}, 400),
        (b"[" * 60000, {}, 400),
        (b'{"model": "tiny-llama", "prompt": "' + b"a" * 70000 + b'"}', {}, 413),
        (b"{}", {"content-type": "text/plain"}, 415),
        (b"{}", {"content-type": ""}, 415),
    ],
)
def test_a_bad_body_is_refused_in_the_same_form(
    client: httpx.Client, content: bytes, headers: dict[str, str], status: int
) -> None:
    headers = {"content-type": "application/json", **headers}
    answer = client.post("/v1/completions", content=content, headers=headers)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_body_without_end_is_cut_off(endpoint: Endpoint, client: httpx.Client) -> None:
    """Chunked, so no length announces it."""
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {endpoint.key}\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    with socket.create_connection(address(endpoint), timeout=30) as endless:
        endless.sendall(head.encode())
        with pytest.raises(OSError):
            for _ in range(1000):
                endless.sendall(b"4000\r\n" + b"a" * 0x4000 + b"\r\n")
    assert client.get("/health").status_code == 200


def test_what_is_no_http_ends_there(endpoint: Endpoint, client: httpx.Client) -> None:
    for rubbish in (
        b"\x16\x03\x01\x02\x00",
        b"GET / HTTP/9.9\r\n\r\n",
        b"A" * 100_000 + b"\r\n\r\n",
    ):
        with socket.create_connection(address(endpoint), timeout=30) as odd:
            odd.sendall(rubbish)
            odd.shutdown(socket.SHUT_WR)
            assert b"200 OK" not in odd.recv(4096)
    assert client.get("/health").json() == {"status": "ready"}


def test_the_key_is_written_nowhere(endpoint: Endpoint) -> None:
    assert endpoint.key is not None
    files = [path for path in endpoint.run_dir.rglob("*") if path.is_file()]
    assert any(path.name == "plan.json" for path in files)
    assert not [path for path in files if endpoint.key.encode() in path.read_bytes()]


def test_unknown_paths_and_methods_are_refused(client: httpx.Client) -> None:
    assert client.get("/v2/completions").status_code == 404
    assert client.get("/v1/completions").status_code == 405
    assert client.get("/v1/completions").json()["error"]["type"] == "invalid_request_error"


def test_only_paths_under_v1_ask_for_a_key(endpoint: Endpoint) -> None:
    statuses = {
        path: httpx.get(endpoint.root + path).status_code
        for path in ("/health", "/metrics", "/openapi.json", "/v1/models")
    }
    assert statuses == {"/health": 200, "/metrics": 200, "/openapi.json": 200, "/v1/models": 401}
    assert httpx.post(endpoint.url + "/completions", content=b"{").status_code == 401
