"""What dies, what is said of it, and what is left: nothing.

The nodes are the two small ones, two ranks each, unless a test says otherwise.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.launcher.ray.cluster import RayCluster
from tests.launcher.ray.outcomes import Outcomes
from tests.launcher.ray.runs import (
    SMALL_NODES,
    agents,
    alive,
    ended,
    in_state,
    launch,
    processes,
    script,
    until,
)

from parctl.cli.main import run as parctl
from parctl.launcher.backend import State
from parctl.launcher.ray.backend import RayBackend
from parctl.launcher.ray.jobs import find_job
from parctl.launcher.run_id import new_run_id

UP = [sys.executable, "-S", "-c", "import time; print('up', flush=True); time.sleep(600)"]
GRID = {"dp": 2, "tp": 2}
RUNS_AGAIN = "Running, attempt 2"
PARCTL_LAUNCH = (sys.executable, "-m", "parctl", "launch", "--set", SMALL_NODES)


@pytest.fixture
def up(backend: RayBackend, tmp_path: Path) -> str:
    """A run whose four ranks sleep, and which may be restarted once."""
    launch(script(tmp_path, UP, GRID, retries=1), SMALL_NODES, run_id=(run_id := new_run_id("up")))
    in_state(backend, run_id, State.RUNNING)
    return run_id


@pytest.fixture
def frail(backend: RayBackend, tmp_path: Path) -> str:
    """The same with no retries."""
    launch(script(tmp_path, UP, GRID), SMALL_NODES, run_id=(run_id := new_run_id("frail")))
    in_state(backend, run_id, State.RUNNING)
    return run_id


def pids(backend: RayBackend, run_id: str) -> list[int]:
    return [rank.pid for rank in backend.status(run_id).ranks if rank.pid]


def attempt_runs(backend: RayBackend, run_id: str, restarts: int) -> None:
    """Wait until a restarted run runs again."""

    def again() -> bool:
        status = backend.status(run_id)
        assert not status.state.ended, status.verdict
        return status.restarts == restarts and status.state is State.RUNNING

    until(again)


def test_kill_9_of_a_rank_names_it_its_node_and_its_groups(
    backend: RayBackend, frail: str, outcomes: Outcomes
) -> None:
    killed = backend.status(frail).ranks[2]
    outcomes.begin()
    os.kill(killed.pid or 0, signal.SIGKILL)
    status = ended(backend, frail)

    assert status.state is State.FAILED
    assert status.verdict is not None
    said = status.verdict.sentence
    outcomes.note("rank: kill -9", "Failed", said, run_id=frail, backend=backend)
    assert (status.verdict.rank, status.verdict.node) == (2, "pair-1")
    assert status.verdict.cause == "signal SIGKILL"
    assert status.verdict.groups == {"dp": [0, 2], "tp": [2, 3]}
    assert status.verdict.victims == ()
    assert status.verdict.last_lines == ("up",)
    assert [rank.state for rank in status.ranks] == [
        "killed SIGTERM",
        "killed SIGTERM",
        "killed SIGKILL",
        "killed SIGTERM",
    ]
    assert processes(frail) == []


def test_a_killed_agent_is_replaced_on_the_kept_placement_group(
    backend: RayBackend, up: str, outcomes: Outcomes
) -> None:
    before = agents(backend, up)
    ranks = pids(backend, up)
    lost = next(iter(before))
    outcomes.begin()
    os.kill(lost, signal.SIGKILL)
    attempt_runs(backend, up, restarts=1)
    (said,) = backend.why(up).evidence
    outcomes.note("agent: kill -9", RUNS_AGAIN, said, run_id=up, backend=backend, ranks=ranks)
    after = agents(backend, up)

    assert set(after.values()) == set(before.values())
    assert len(set(after) & set(before)) == 1  # the other agent never ended
    assert not any(alive(pid) for pid in ranks)
    assert "was lost with ranks" in said


def test_kill_9_of_the_driver_leaves_no_rank_and_says_so(
    backend: RayBackend, up: str, outcomes: Outcomes
) -> None:
    (driver,) = (
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit()
        and b"parctl.launcher.ray.driver" in _read(entry / "cmdline")
        and up.encode() in _read(entry / "environ")
    )
    outcomes.begin()
    os.kill(driver, signal.SIGKILL)
    status = ended(backend, up)

    assert status.state is State.FAILED  # Ray runs the entry point once: there is no second driver
    assert status.verdict is not None
    assert status.verdict.sentence == "the driver was killed while the run was Running"
    until(lambda: not processes(up), seconds=10)
    outcomes.note("driver: kill -9", "Failed", status.verdict.sentence, run_id=up)
    assert {rank.state for rank in status.ranks} == {"lost"}


def test_a_run_goes_on_when_a_lost_node_comes_back(
    cluster: RayCluster, backend: RayBackend, up: str, outcomes: Outcomes
) -> None:
    ranks = pids(backend, up)
    outcomes.begin()
    cluster.kill_raylet("pair-1")
    until(lambda: backend.status(up).state is not State.RUNNING)
    cluster.forget("pair-1")
    cluster.add("pair-1", num_gpus=2, num_cpus=4)
    attempt_runs(backend, up, restarts=1)

    (first,) = backend.why(up).evidence
    outcomes.note(
        "raylet: kill -9, the node comes back",
        RUNS_AGAIN,
        first,
        run_id=up,
        backend=backend,
        ranks=ranks,
    )
    assert first.startswith("attempt 1: node pair-1 was lost with ranks 2 to 3")
    assert {rank.node for rank in backend.status(up).ranks} == {"pair-0", "pair-1"}


def test_a_lost_node_is_replaced_by_a_free_one(
    cluster: RayCluster, backend: RayBackend, tmp_path: Path, outcomes: Outcomes
) -> None:
    source = script(tmp_path, UP, {"dp": 3, "tp": 8}, retries=1)
    plan = launch(source, run_id="move-1")
    in_state(backend, "move-1", State.RUNNING)
    assert plan.topology["nodes"] == ["node-0", "node-1", "node-2"]
    ranks = pids(backend, "move-1")
    outcomes.begin()
    cluster.kill_raylet("node-1")
    try:
        attempt_runs(backend, "move-1", restarts=1)
        (said,) = backend.why("move-1").evidence
        outcomes.note(
            "raylet: kill -9, another node is free",
            RUNS_AGAIN,
            said,
            run_id="move-1",
            backend=backend,
            ranks=ranks,
        )
        assert not any(alive(pid) for pid in ranks)
        assert {rank.node for rank in backend.status("move-1").ranks} == {
            "node-0",
            "node-2",
            "node-3",
        }
    finally:
        cluster.forget("node-1")
        cluster.add("node-1", num_gpus=8, num_cpus=4)


def test_a_full_cluster_is_waited_for_and_explained(
    backend: RayBackend, frail: str, tmp_path: Path, outcomes: Outcomes
) -> None:
    outcomes.begin()
    launch(script(tmp_path, UP, GRID), SMALL_NODES, run_id="next-1")
    in_state(backend, "next-1", State.PENDING)
    until(lambda: "is taken" in backend.why("next-1").sentence)
    diagnosis = backend.why("next-1")
    outcomes.note("the cluster is full", "Pending, then runs", diagnosis.sentence)

    assert diagnosis.sentence == (
        f"pair-0 is taken: 2 GPUs are needed and 0 are free (held: 2 GPU and 1 CPU by job {frail}, "
        f"placement group parctl-{frail}); likewise pair-1; now 4 of 6 nodes could take 2 ranks "
        "each, 8 in all, of the 4 asked for"
    )
    assert diagnosis.fix == "wait, end what holds it, or ask for fewer devices"
    backend.cancel(frail)
    in_state(backend, "next-1", State.RUNNING)


def test_waiting_ends_with_its_time(backend: RayBackend, frail: str, tmp_path: Path) -> None:
    waiting = script(tmp_path, UP, GRID, ray={"wait_s": 2})
    launch(waiting, SMALL_NODES, run_id="late-1")
    status = ended(backend, "late-1")

    assert status.state is State.FAILED
    assert status.verdict is not None
    assert status.verdict.sentence.startswith("pair-0 is taken: 2 GPUs are needed and 0 are free")


def test_cancel_lets_ranks_save_and_leaves_nothing(backend: RayBackend, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    save = [
        sys.executable,
        "-S",
        "-c",
        "import os, signal, sys, time\n"
        "def save(*_):\n"
        "    time.sleep(1)\n"
        f"    open('{saved}-' + os.environ['RANK'], 'w')\n"
        "    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "print('up', flush=True)\n"
        "time.sleep(600)",
    ]
    launch(script(tmp_path, save, GRID), SMALL_NODES, run_id="save-1")
    in_state(backend, "save-1", State.RUNNING)
    until(lambda: _num_lines(backend, "save-1") == 4)
    backend.cancel("save-1")
    status = backend.status("save-1")

    assert status.state is State.CANCELLED
    assert [rank.state for rank in status.ranks] == ["exited 143"] * 4
    assert sorted(path.name for path in tmp_path.glob("saved-*")) == [
        "saved-0",
        "saved-1",
        "saved-2",
        "saved-3",
    ]
    assert processes("save-1") == []
    backend.delete("save-1")
    time.sleep(2)  # Ray's own watcher of the job does not bring it back
    assert find_job(backend._dashboard, "save-1") is None


def test_cancel_with_a_grace_of_its_own_kills_who_does_not_leave(
    backend: RayBackend, tmp_path: Path
) -> None:
    stay = [
        sys.executable,
        "-S",
        "-c",
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('up', flush=True); time.sleep(600)",
    ]
    launch(script(tmp_path, stay, GRID, stop_grace_s=600), SMALL_NODES, run_id="stay-1")
    until(lambda: _num_lines(backend, "stay-1") == 4)
    backend.cancel("stay-1", grace_s=0.5)
    status = backend.status("stay-1")

    assert status.state is State.CANCELLED
    assert [rank.state for rank in status.ranks] == ["killed SIGKILL"] * 4
    assert processes("stay-1") == []


def test_ctrl_c_while_following_cancels(
    cluster: RayCluster, tmp_path: Path, outcomes: Outcomes
) -> None:
    source = script(tmp_path, UP, GRID)
    follower = subprocess.Popen(
        [*PARCTL_LAUNCH, source, "--run-id", "follow-1", "--follow"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **cluster.environment},
    )
    assert follower.stdout
    assert [follower.stdout.readline() for _ in range(2)] == ["follow-1\n", "up\n"]
    outcomes.begin()
    follower.send_signal(signal.SIGINT)
    _, said = follower.communicate(timeout=60)

    assert follower.returncode == 130
    assert "run `follow-1` was cancelled" in said
    until(lambda: not processes("follow-1"), seconds=10)
    outcomes.note("^C while following", "Cancelled", last_of(said), run_id="follow-1")


def test_a_client_that_is_killed_changes_nothing(
    cluster: RayCluster, backend: RayBackend, tmp_path: Path, outcomes: Outcomes
) -> None:
    source = script(tmp_path, UP, GRID)
    client = subprocess.Popen(
        [*PARCTL_LAUNCH, source, "--run-id", "alone-1", "--follow"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **cluster.environment},
    )
    assert client.stdout
    assert client.stdout.readline() == "alone-1\n"
    outcomes.begin()
    client.kill()
    client.communicate()

    in_state(backend, "alone-1", State.RUNNING)
    outcomes.note("client: kill -9", "Running", "nothing: the run goes on")


@pytest.mark.parametrize(("token", "status"), [("wrong", 403), ("", 401)])
def test_a_wrong_token_is_exit_5(
    cluster: RayCluster,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    outcomes: Outcomes,
    token: str,
    status: int,
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/nowhere")

    outcomes.begin()
    assert parctl(["list", "-b", "ray"]) == 5
    said = capsys.readouterr().err
    outcomes.note(f"token: {token or 'none'}", "exit code 5", last_of(said))
    assert f"answers {status} to /api/jobs/" in said
    assert "hint: set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH" in said


def test_a_node_that_is_not_there_is_refused_at_once(
    cluster: RayCluster, capsys: pytest.CaptureFixture[str], tmp_path: Path, outcomes: Outcomes
) -> None:
    source = script(tmp_path, UP, GRID)

    outcomes.begin()
    assert parctl(["launch", source, "-b", "ray", "--set", "placement.require=[node-9]"]) == 2
    said = capsys.readouterr().err
    outcomes.note("a node that is not there", "exit code 2", last_of(said))
    assert "require names node `node-9`, which" in said


def test_more_than_the_cluster_has_is_refused_with_the_sum(
    cluster: RayCluster, capsys: pytest.CaptureFixture[str], tmp_path: Path, outcomes: Outcomes
) -> None:
    source = script(tmp_path, UP, {"dp": 5, "tp": 8})

    outcomes.begin()
    assert parctl(["launch", source, "-b", "ray"]) == 4
    said = capsys.readouterr().err
    outcomes.note("the cluster is too small for ever", "exit code 4", last_of(said))
    assert "dp(5) x tp(8) = 40, cluster has 36 GPUs" in said


def test_a_rank_that_stops_is_named_by_those_that_wait_for_it(
    backend: RayBackend, tmp_path: Path, outcomes: Outcomes
) -> None:
    launch(
        "tiny-llama",
        "parallelism=TP2+SP+FSDP2",
        "train.steps=100000",
        "train.seq_len=32",
        "train.global_batch=4",
        "train.micro_batch=2",
        "train.log_every=1",
        "train.validate_every=0",
        "train.comm_timeout_s=4",
        f"checkpoint.dir={tmp_path}/saved",
        SMALL_NODES,
        run_id="hang-1",
    )
    until(lambda: (backend.status("hang-1").step or 0) >= 2)
    stopped = backend.status("hang-1").ranks[3]
    began = time.monotonic()
    outcomes.begin()
    os.kill(stopped.pid or 0, signal.SIGSTOP)
    status = ended(backend, "hang-1")

    assert status.state is State.FAILED
    assert status.verdict is not None
    assert status.verdict.rank == 3
    said = status.verdict.sentence
    outcomes.note("rank: SIGSTOP (4 s allowed)", "Failed", said, run_id="hang-1", backend=backend)
    assert "rank 3 (node pair-1" in status.verdict.sentence
    assert "it is stopped (SIGSTOP)" in status.verdict.sentence
    assert time.monotonic() - began < 60
    assert processes("hang-1") == []


def last_of(said: str) -> str:
    """The error among what the command line said."""
    return next(line for line in said.splitlines() if line.startswith("error: "))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _num_lines(backend: RayBackend, run_id: str) -> int:
    lines = backend.logs(run_id, rank=None, since=None, tail=None, follow=False)
    return sum(line.rank is not None for line in lines)
