"""The bundled runtime through the fork server: torch imported once, ranks killed, run resumed."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
from tests.launcher.runs import BACKEND, directory, launch, left, log, pid_of, run, until

from parctl.launcher.backend import State
from parctl.launcher.places import runs_root
from parctl.launcher.waiting import wait_for
from parctl.planner.make import make_plan
from parctl.planner.plan import Plan
from parctl.recipes.loader import load_recipe
from parctl.topology.discover import discover

STEPS = 12


def training(*overrides: str) -> Plan:
    """Four ranks, TP2+SP+FSDP2, that save at every second step."""
    small = (
        f"train.steps={STEPS}",
        "train.seq_len=32",
        "train.global_batch=4",
        "train.micro_batch=2",
        "train.optimizer.warmup_steps=2",
        "train.log_every=1",
        "train.validate_every=0",
        "checkpoint.every=2",
    )
    recipe = load_recipe("tiny-llama", [*small, *overrides])
    return make_plan(recipe, discover(None, num_devices=4))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> float:
    """The last loss of a run that nobody disturbs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("undisturbed")))
        status = run(training(), "calm")
        assert status.state is State.SUCCEEDED, log(0, "calm")
        rows = BACKEND.metrics("calm")
        assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
        return float(rows[-1]["loss"])


def reaches(step: int) -> bool:
    return (BACKEND.status("probe-1").step or 0) >= step


def test_a_fork_server_that_began_before_the_run_is_its_own_and_is_found_by_its_marks() -> None:
    with BACKEND.standby():
        launch(training())
    until(lambda: reaches(2), seconds=60)
    server = pid_of("parctl-fork")
    ranks = {rank.pid for rank in BACKEND.status("probe-1").ranks}
    assert {server, *ranks} <= {member.pid for member in left()}
    assert directory().forkserver_log.exists()
    assert not list(runs_root().glob(".ahead-*"))
    os.kill(directory().read().owner.pid, signal.SIGKILL)
    until(lambda: not left())


def test_a_killed_rank_is_retried_and_the_run_ends_with_the_same_loss(undisturbed: float) -> None:
    launch(training("launch.retries=1"))
    until(lambda: reaches(5), seconds=60)
    first = BACKEND.status("probe-1").ranks
    server = pid_of("parctl-fork")
    os.kill(first[2].pid or 0, signal.SIGKILL)
    until(lambda: BACKEND.status("probe-1").restarts == 1, seconds=20)
    assert pid_of("parctl-fork") == server  # torch is not imported again
    status = wait_for(BACKEND, "probe-1", timeout_s=60)

    assert (status.state, status.restarts) == (State.SUCCEEDED, 1), status.verdict
    rows = BACKEND.metrics("probe-1")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert rows[-1]["attempt"] == 2
    assert rows[3]["attempt"] == 1  # it went on from a checkpoint, not from the beginning
    assert rows[-1]["loss"] == undisturbed
    event = json.loads(directory().events.read_text().splitlines()[1])
    assert re.fullmatch(
        r"rank 2 \(node .+, fsdp 1, tp 0\) was killed by SIGKILL after .+; "
        r"its groups: fsdp \[0, 2\], tp \[2, 3\]",
        event["sentence"],
    )
    assert left() == []


def test_a_layout_that_permutes_ranks_trains_alike(undisturbed: float) -> None:
    plan = training("parallelism={form: TP2+SP+FSDP2, order: [tp, fsdp]}")
    assert plan.layout.ranks == (0, 2, 1, 3)
    assert run(plan).state is State.SUCCEEDED
    assert BACKEND.metrics("probe-1")[-1]["loss"] == pytest.approx(undisturbed, rel=1e-5)


def test_cancel_saves_a_checkpoint_within_5_s() -> None:
    plan = training("train.steps=2000", "checkpoint.every=0")
    launch(plan)
    until(lambda: reaches(3), seconds=60)
    BACKEND.cancel("probe-1")

    status = BACKEND.status("probe-1")
    assert status.state is State.CANCELLED
    # a rank that has saved but is slow to exit is killed when the time is up
    assert {rank.state for rank in status.ranks} <= {"exited 143", "killed SIGKILL"}
    assert len(list(directory().path.glob("checkpoints/step-*/COMPLETE"))) == 1
    assert left() == []


def test_cancel_does_not_wait_for_ranks_that_have_not_started() -> None:
    launch(training())  # torch is being imported, which takes seconds
    began = time.monotonic()
    BACKEND.cancel("probe-1")

    assert time.monotonic() - began < 1.0
    assert left() == []
    assert BACKEND.status("probe-1").state is State.CANCELLED


def test_the_fork_server_has_one_thread_and_its_death_hurts_no_rank() -> None:
    launch(training())
    until(lambda: reaches(1), seconds=60)
    server = pid_of("parctl-fork")
    assert os.listdir(f"/proc/{server}/task") == [str(server)]
    owner = directory().read().owner.pid
    for rank in BACKEND.status("probe-1").ranks:
        stat = Path(f"/proc/{rank.pid}/stat").read_text()
        name, parent = stat.split("(", 1)[1].rsplit(")", 1)
        assert (name, int(parent.split()[1])) == (f"parctl-rank-{rank.rank}", owner)
    os.kill(server, signal.SIGKILL)

    assert wait_for(BACKEND, "probe-1", timeout_s=60).state is State.SUCCEEDED


def test_a_fork_server_that_cannot_import_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('libcudart.so.13 is gone')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    status = run(training())

    assert status.state is State.FAILED
    assert status.verdict is not None
    assert status.verdict.sentence == (
        "the ranks could not be started: ImportError: libcudart.so.13 is gone"
    )
