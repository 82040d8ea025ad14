"""Endpoints of several ranks: a rank dies, a run is told to end, replicas share the work."""

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from tests.launcher.runs import BACKEND, directory, launch, left, log, until
from tests.runtime.serving.endpoint import MODEL, Endpoint, serving, url_of

from parctl.errors import UsageError
from parctl.launcher.backend import State
from parctl.launcher.waiting import wait_for
from parctl.planner.cluster import cluster_for
from parctl.planner.make import make_plan
from parctl.recipes.loader import load_recipe
from parctl.recipes.spec import Recipe
from parctl.runtime.serving.front_process import FrontProcess, is_taken

BODY = {"model": MODEL, "prompt": "The gradients of", "max_tokens": 8}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Streaming:
    """A long answer, read in a thread."""

    def __init__(self, endpoint: Endpoint, **fields: object) -> None:
        self.text, self.error, self.ended = "", None, 0.0  # type: str, Exception | None, float
        self._url, self._fields = f"{endpoint.url}/completions", fields
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        body = {**BODY, "max_tokens": 100, "stream": True, **self._fields}
        try:
            with httpx.stream("POST", self._url, json=body, timeout=60) as answer:
                for piece in answer.iter_text():
                    self.text += piece
        except httpx.HTTPError as error:
            self.error = error
        self.ended = time.monotonic()

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)
        assert not self._thread.is_alive(), self.text


@contextmanager
def streaming(endpoint: Endpoint, **fields: object) -> Iterator[Streaming]:
    """A stream of which something has come."""
    stream = Streaming(endpoint, **fields)
    try:
        while not stream.text and not stream.ended:
            time.sleep(0.01)
        yield stream
    finally:
        stream.join(60)


def test_after_a_killed_rank_calls_fail_clearly_and_the_group_serves_again(tmp_path: Path) -> None:
    port = free_port()
    overrides = [f"serve.port={port}", "parallelism=TP2", "launch.retries=1"]
    with serving(tmp_path, overrides, run_id="kill-1") as endpoint:
        before = httpx.post(f"{endpoint.url}/completions", json=BODY, timeout=60).json()
        with streaming(endpoint, n=8) as stream:
            killed = time.monotonic()
            os.kill(rank_pid("kill-1", 1), signal.SIGKILL)
            stream.join(10)
            assert stream.ended - killed < 4  # before anybody is killed for being slow
            assert "[DONE]" not in stream.text
            assert "the engine that computed this request is gone" in stream.text
        assert url_of("kill-1", attempt=2) == endpoint.url
        after = httpx.post(f"{endpoint.url}/completions", json=BODY, timeout=60).json()
        assert after["choices"] == before["choices"]
        assert BACKEND.status("kill-1").restarts == 1


def rank_pid(run_id: str, rank: int) -> int:
    record = directory(run_id).read()
    process = record.processes[rank]
    assert process is not None
    return process.pid


def tiny(tmp_path: Path, port: int) -> Recipe:
    file = tmp_path / "tiny.yaml"
    file.write_text(
        "version: 1\ntask: serve\nmodel: tiny-llama\nparallelism: TP2\n"
        f"serve: {{port: {port}}}\nlaunch: {{env: {{OMP_NUM_THREADS: '1'}}}}\n"
    )
    return load_recipe(str(file))


def test_a_taken_port_is_found_before_a_model_is_read(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert is_taken("127.0.0.1", port)
        front = FrontProcess(tiny(tmp_path, port), listen="127.0.0.1", num_replicas=1)
        try:
            with pytest.raises(UsageError, match=f"cannot listen on 127.0.0.1 port {port}"):
                front.refuse_taken_port()
        finally:
            front.close()
    assert not is_taken("127.0.0.1", port)
    assert not is_taken("127.0.0.1", 0)


def test_before_the_weights_are_there_health_says_starting(tmp_path: Path) -> None:
    """The front alone, as it is while ranks read the model."""
    port = free_port()
    front = FrontProcess(tiny(tmp_path, port), listen="127.0.0.1", num_replicas=1)
    try:
        _, url = front.where()
        answer = httpx.get(f"{url.removesuffix('/v1')}/health", timeout=10)
        assert (answer.status_code, answer.json()) == (503, {"status": "starting"})
        assert httpx.post(f"{url}/completions", json=BODY, timeout=10).status_code == 503
    finally:
        front.close()


def test_a_taken_port_has_one_hint(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        recipe = tiny(tmp_path, port)
        launch(make_plan(recipe, cluster_for(recipe, None)), "taken-1")
        status = wait_for(BACKEND, "taken-1", timeout_s=240.0)
    assert status.state is State.FAILED and status.verdict is not None
    said = f"cannot listen on 127.0.0.1 port {port}: Address already in use"
    assert said in status.verdict.cause
    fix = status.verdict.fix
    assert fix == "free that port, or take another: `serve.port: 0` takes any free one"
    assert f"hint: {fix}" in log(0, "taken-1")


def test_told_to_end_it_answers_what_is_under_way_and_takes_nothing_new(tmp_path: Path) -> None:
    # so long that draining lasts for seconds: who asks late still finds it
    overrides = ["model.max_seq_len=640", "inference.max_context=640"]
    with serving(tmp_path, overrides, run_id="drain-1") as endpoint:
        with streaming(endpoint, n=4, max_tokens=500) as stream:
            os.kill(rank_pid("drain-1", 0), signal.SIGTERM)
            while (answer := httpx.get(f"{endpoint.root}/health")).status_code == 200:
                time.sleep(0.01)
            assert answer.json() == {"status": "draining"}
            refused = httpx.post(f"{endpoint.url}/completions", json=BODY)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "draining"
            stream.join(60)
            assert stream.text.endswith("data: [DONE]\n\n")
            assert stream.text.count('"finish_reason":"length"') == 4
        deadline = time.monotonic() + 20
        while not (status := BACKEND.status("drain-1")).state.ended:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert [rank.state for rank in status.ranks] == ["exited 143"]
        until(lambda: not left("drain-1"))


def test_replicas_share_calls_and_common_beginnings_stay_together(tmp_path: Path) -> None:
    overrides = ["parallelism=DP2", "inference.block_size=16"]
    with serving(tmp_path, overrides, run_id="replicas-1") as endpoint:
        plain = httpx.post(f"{endpoint.url}/completions", json=BODY, timeout=60).json()
        with streaming(endpoint, n=4), streaming(endpoint, n=4, prompt="another") as _:
            both = httpx.post(f"{endpoint.url}/completions", json=BODY, timeout=60).json()
        assert both["choices"] == plain["choices"]
        shared = "a beginning that many prompts share, and that is two blocks long: "
        for end in ("one", "two", "three", "four"):
            body = {**BODY, "prompt": shared + end}
            assert httpx.post(f"{endpoint.url}/completions", json=body, timeout=60).is_success
        time.sleep(2.5)  # engines tell how they stand once a second
        text = httpx.get(f"{endpoint.root}/metrics").text
        tokens = {
            name: [
                float(value)
                for value in re.findall(
                    rf'parctl_engine_{name}_tokens_total{{replica="\d"}} (\S+)', text
                )
            ]
            for name in ("output", "cached")
        }
        assert len(tokens["output"]) == 2 and min(tokens["output"]) > 0
        assert max(tokens["cached"]) >= 3 * 64  # all but the first of the four found it


def test_a_taken_port_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with (
            pytest.raises(AssertionError),
            serving(tmp_path, [f"serve.port={taken.getsockname()[1]}"], run_id="taken-1") as _,
        ):
            raise ValueError("it serves")
    status = BACKEND.status("taken-1")
    assert status.state is State.FAILED
    assert any("cannot listen on 127.0.0.1" in line for line in log(0, "taken-1"))


def test_replicas_with_common_experts_serve_and_end_together(tmp_path: Path) -> None:
    """One has work and the other has none, then both; told to end, none waits for the other."""
    overrides = ["model=tiny-moe", "parallelism=DP2+EP2"]
    with serving(tmp_path, overrides, run_id="experts-1") as endpoint:
        body = {**BODY, "model": "tiny-moe"}
        alone = httpx.post(f"{endpoint.url}/completions", json=body, timeout=60).json()
        with streaming(endpoint, n=2, model="tiny-moe", prompt="another") as _:
            beside = httpx.post(f"{endpoint.url}/completions", json=body, timeout=60).json()
        assert beside["choices"] == alone["choices"]
        os.kill(rank_pid("experts-1", 0), signal.SIGTERM)
        deadline = time.monotonic() + 30
        while not (status := BACKEND.status("experts-1")).state.ended:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert [rank.state for rank in status.ranks] == ["exited 143"] * 2
