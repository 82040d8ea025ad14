"""A network that fails while a run is launched, and a head that dies under one."""

import socket
import socketserver
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tests.launcher.ray.bare import RAY, bare_python
from tests.launcher.ray.cluster import RayCluster, start_cluster
from tests.launcher.ray.outcomes import Outcomes
from tests.launcher.ray.runs import (
    SMALL_NODES,
    ended,
    in_state,
    launch,
    processes,
    script,
    until,
)

from parctl.cli.main import run as parctl
from parctl.errors import BackendError, UnknownRunError
from parctl.launcher.backend import RunStatus, State
from parctl.launcher.ray.backend import RayBackend
from parctl.launcher.run_id import new_run_id

UP = [sys.executable, "-S", "-c", "import time; print('up', flush=True); time.sleep(600)"]


class CutsUploads(socketserver.BaseRequestHandler):
    """Passes requests on to the dashboard, but closes in the middle of an upload."""

    target: tuple[str, int]

    def handle(self) -> None:
        with socket.create_connection(self.target) as dashboard:
            first = self.request.recv(65536)
            if first.startswith(b"PUT "):
                dashboard.sendall(first[:1000])
                return
            dashboard.sendall(first)
            dashboard.settimeout(20)
            with suppress(OSError):
                while data := dashboard.recv(65536):
                    self.request.sendall(data)


@pytest.fixture
def cutting(cluster: RayCluster) -> Iterator[str]:
    parts = urlsplit(cluster.address)
    CutsUploads.target = (str(parts.hostname), int(parts.port or 0))
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), CutsUploads) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_an_upload_that_is_cut_starts_nothing_and_can_be_repeated(
    cutting: str,
    cluster: RayCluster,
    backend: RayBackend,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    outcomes: Outcomes,
) -> None:
    source, run_id = script(tmp_path, ["/bin/true"], {"dp": 2, "tp": 2}), new_run_id("cut")
    words = ["launch", source, "-b", "ray", "--set", SMALL_NODES, "--run-id", run_id]

    outcomes.begin()
    assert parctl([*words, "--address", cutting]) == 5
    said = capsys.readouterr().err
    error = next(line for line in said.splitlines() if line.startswith("error: "))
    outcomes.note("the upload is cut", "exit code 5, the same again runs", error)
    assert "could not be sent: Ray at" in said
    assert run_id not in [run.run_id for run in backend.list()]

    monkeypatch.setenv("PARCTL_ADDRESS", cluster.address)
    assert parctl(words) == 0
    assert capsys.readouterr().out == f"{run_id}\n"
    in_state(backend, run_id, State.SUCCEEDED)
    assert parctl(words) == 0  # the same again is the same run
    assert "this run exists already with the same plan" in capsys.readouterr().err


@pytest.fixture
def other_cluster(
    clean_environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RayCluster]:
    """One node, in an environment that has no torch; its head may be killed."""
    python = bare_python(tmp_path / "bare", [RAY, "numpy"])
    cluster = start_cluster({"only-0": {"num_gpus": 4, "num_cpus": 4}}, python=python)
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    yield cluster
    cluster.close()


def test_what_a_node_lacks_is_told_and_when_the_head_dies_no_rank_stays(
    other_cluster: RayCluster, tmp_path: Path, outcomes: Outcomes
) -> None:
    backend, run_id = RayBackend(), new_run_id("head")
    launch("tiny-llama", "parallelism=TP2+SP+FSDP2", run_id="lacks-1")
    status = ended(backend, "lacks-1")
    assert status.state is State.FAILED
    assert status.verdict is not None
    assert status.verdict.sentence == (
        "the nodes lack what the run needs: "
        f"only-0 ({tmp_path}/bare/bin/python3): `torch` is not installed"
    )
    assert status.verdict.fix == "install it in the environment that Ray runs in there"

    # a program of the user's own needs none
    launch(script(tmp_path, UP, {"dp": 2, "tp": 2}), run_id=run_id)
    in_state(backend, run_id, State.RUNNING)
    assert len(processes(run_id)) >= 4
    outcomes.begin()
    other_cluster.kill_head()

    until(lambda: not processes(run_id), seconds=60)
    with pytest.raises(BackendError, match="does not answer") as caught:
        backend.status(run_id)
    outcomes.note("head: kill -9", "exit code 5", caught.value.message, run_id=run_id)

    # started again without its tables it knows of no run
    other_cluster.restart_head()
    with pytest.raises(UnknownRunError, match=f"there is no run `{run_id}`") as unknown:
        until(lambda: asked(backend, run_id))
    assert "a head that was started again" in str(unknown.value.hint)
    assert backend.list() == []


def asked(backend: RayBackend, run_id: str) -> RunStatus | None:
    """The status of a run, once the dashboard answers."""
    try:
        return backend.status(run_id)
    except UnknownRunError:
        raise
    except BackendError:
        return None


@pytest.fixture
def lasting_cluster(
    clean_environment: Path, bare: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RayCluster]:
    """One node, and a head that keeps its tables."""
    cluster = start_cluster(
        {"only-0": {"num_gpus": 4, "num_cpus": 4}}, python=bare, fault_tolerant=True
    )
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    yield cluster
    cluster.close()


def test_a_head_that_restarts_with_its_tables_has_lost_the_driver_and_the_run_can_be_repeated(
    lasting_cluster: RayCluster,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    outcomes: Outcomes,
) -> None:
    backend, source = RayBackend(), script(tmp_path, UP, {"dp": 2, "tp": 2}, retries=1)
    launch(source, run_id="head-1")
    in_state(backend, "head-1", State.RUNNING)
    outcomes.begin()
    lasting_cluster.restart_head()

    # Ray's own table says that it runs, until somebody stops it or submits another job
    status = until(lambda: asked(backend, "head-1"))
    assert status.state is State.FAILED
    assert status.verdict is not None
    said = status.verdict.sentence
    assert said == "the driver was lost with its node while the run was Running"
    assert [(run.run_id, run.state) for run in backend.list()] == [("head-1", State.FAILED)]
    until(lambda: not processes("head-1"), seconds=60)
    outcomes.note("head: restarted, with its tables", "Failed", said, run_id="head-1")
    assert parctl(["logs", "head-1", "-b", "ray"]) == 5
    assert "is gone with the node that its driver ran on" in capsys.readouterr().err

    launch(source, run_id="head-2")  # the nodes are the same, and free
    in_state(backend, "head-2", State.RUNNING)
    backend.cancel("head-2", grace_s=0)
    backend.delete("head-1")
    assert [run.run_id for run in backend.list()] == ["head-2"]
