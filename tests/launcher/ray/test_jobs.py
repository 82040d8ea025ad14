"""Requests to a head that has only just started. A small server stands for its dashboard."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from parctl.errors import BackendError
from parctl.launcher.ray.jobs import node_lives, submit_job
from parctl.topology.sources.ray_dashboard import Dashboard

# Ray's own words
NO_AGENT = b"No available agent to submit job, please try again later."
JOB = {"entrypoint": "true", "submission_id": "tiny-1"}


class Head(ThreadingHTTPServer):
    """Refuses so many jobs before it takes one, and has one node that lives."""

    refusals = 0
    refusal = NO_AGENT
    taken: list[bytes]


class Answers(BaseHTTPRequestHandler):
    server: Head

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.refusals:
            self.server.refusals -= 1
            self.answer(500, self.server.refusal)
            return
        self.server.taken.append(body)
        self.answer(200, b"{}")

    def do_GET(self) -> None:
        rows = [{"node_id": "ab", "state": "ALIVE"}, {"node_id": "cd", "state": "DEAD"}]
        wanted = [row for row in rows if self.path.endswith(f"filter_values={row['node_id']}")]
        self.answer(200, json.dumps({"data": {"result": {"result": wanted}}}).encode())

    def answer(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *words: object) -> None:
        """Say nothing."""


@pytest.fixture
def head() -> Iterator[Head]:
    with Head(("127.0.0.1", 0), Answers) as server:
        server.taken = []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def dashboard(head: Head) -> Dashboard:
    return Dashboard(f"http://127.0.0.1:{head.server_port}")


def test_a_head_whose_agent_is_late_is_asked_again(head: Head) -> None:
    head.refusals = 2
    submit_job(dashboard(head), JOB)

    assert [json.loads(body) for body in head.taken] == [JOB]


def test_a_head_without_an_agent_is_given_up_with_what_to_look_at(head: Head) -> None:
    head.refusals = 1000
    with pytest.raises(BackendError, match=r"has not come up in 0.5 s") as caught:
        submit_job(dashboard(head), JOB, patience_s=0.5)

    assert "--dashboard-agent-listen-port" in str(caught.value.hint)
    assert head.taken == []


def test_another_refusal_is_not_waited_for(head: Head) -> None:
    head.refusals, head.refusal = 1, b"ValueError: Job with submission_id tiny-1 already exists."
    with pytest.raises(BackendError, match="already exists"):
        submit_job(dashboard(head), JOB)

    assert head.taken == []


def test_a_node_lives_when_the_cluster_says_so(head: Head) -> None:
    assert [node_lives(dashboard(head), node) for node in ("ab", "cd", "ef")] == [
        True,
        False,
        False,
    ]
