"""A rank's exit code and error file say what happened to it."""

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from math import isfinite
from pathlib import Path
from unittest import mock

import pytest
from tests.runtime.harness import (
    fork_ranks,
    read_logs,
    read_metrics,
    run_plan,
    run_ranks,
    train_to_end,
)
from tests.runtime.plans import OPTIMIZER, plan

from parctl.runtime.worker import run_rank


def after_steps(run_dir: Path, count: int, act: Callable[[list[int]], None]) -> Callable[..., None]:
    def wait_and_act(pids: list[int]) -> None:
        metrics = run_dir / "metrics.jsonl"
        while not metrics.exists() or len(metrics.read_text().splitlines()) < count:
            time.sleep(0.002)
        act(pids)

    return wait_and_act


def error_message(run_dir: Path, rank: int) -> str:
    content = json.loads((run_dir / f"error-{rank}.json").read_text())
    assert int(content["message"]["extraInfo"]["timestamp"]) > 1_700_000_000
    assert content["message"]["extraInfo"]["py_callstack"]
    message: str = content["message"]["message"]
    return message


def test_sigterm_to_one_rank_makes_all_save_and_leave_with_143(text: Path, tmp_path: Path) -> None:
    made = plan(text, {"fsdp": 2, "tp": 2}, sp=True, train={"steps": 100_000})
    codes = run_plan(
        made,
        tmp_path,
        while_running=after_steps(tmp_path, 2, lambda pids: os.kill(pids[2], signal.SIGTERM)),
    )
    assert codes == [143, 143, 143, 143]
    saved = list((tmp_path / "checkpoints").glob("step-*"))
    assert len(saved) == 1 and (saved[0] / "COMPLETE").exists()


def test_a_killed_peer_is_not_the_survivors_fault(text: Path, tmp_path: Path) -> None:
    made = plan(text, {"dp": 2}, train={"steps": 100_000})
    codes = run_plan(
        made,
        tmp_path,
        while_running=after_steps(tmp_path, 2, lambda pids: os.kill(pids[1], signal.SIGKILL)),
    )
    assert codes == [75, -9]
    assert "gloo/transport" in error_message(tmp_path, 0)


def test_a_hanging_peer_is_noticed_within_the_time_out(text: Path, tmp_path: Path) -> None:
    made = plan(text, {"dp": 2}, train={"steps": 100_000, "comm_timeout_s": 2.0})
    stopped = []

    def stop(pids: list[int]) -> None:
        os.kill(pids[1], signal.SIGSTOP)
        begin = time.monotonic()
        while not (tmp_path / "error-0.json").exists():
            time.sleep(0.01)
            assert time.monotonic() < begin + 20
        stopped.append(time.monotonic() - begin)
        os.kill(pids[1], signal.SIGKILL)

    codes = run_plan(made, tmp_path, while_running=after_steps(tmp_path, 2, stop))
    assert codes == [75, -9]
    assert 1.5 < stopped[0] < 7


def test_a_users_mistake_is_told_without_a_traceback(text: Path, tmp_path: Path) -> None:
    made = plan(tmp_path / "absent.txt", {})
    assert run_plan(made, tmp_path) == [1]
    log = read_logs(tmp_path)
    assert f"error: data: {tmp_path}/absent.txt: no such file" in log
    assert "hint: check the path" in log
    assert "Traceback" not in log
    assert error_message(tmp_path, 0).startswith("UsageError: data: ")


def test_a_directory_that_cannot_be_written_is_refused_before_the_first_step(
    text: Path, tmp_path: Path
) -> None:
    made = plan(text, {"dp": 2}, checkpoint={"dir": f"{text}/checkpoints"})
    codes = run_plan(made, tmp_path)
    assert codes[0] == 1
    message = error_message(tmp_path, 0)
    assert message == (
        f"UsageError: checkpoint.dir = {text}/checkpoints cannot be written: Not a directory"
    )
    assert not (tmp_path / "metrics.jsonl").exists()


def test_training_that_diverges_says_so_and_stops(text: Path, tmp_path: Path) -> None:
    optimizer = replace(OPTIMIZER, lr=1e9, min_lr=1e9, warmup_steps=0)
    made = plan(text, {"dp": 2}, train={"steps": 100, "optimizer": optimizer, "validate_every": 1})
    assert run_plan(made, tmp_path) == [1, 1]
    assert "training diverged at step" in error_message(tmp_path, 0)
    assert "hint: lower train.optimizer.lr" in read_logs(tmp_path)
    assert all(isfinite(record["loss"]) for record in read_metrics(tmp_path))


def test_a_broken_plan_is_refused(text: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps({"schema": 99}))
    results = fork_ranks(run_rank, 1, tmp_path, tmp_path / "plan.json", tmp_path)
    assert results[0].value == 1
    assert "plan has schema 99" in error_message(tmp_path, 0)


def test_a_failure_whose_file_cannot_be_written_is_told_in_the_log(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps({"schema": 99}))
    nowhere = {"TORCHELASTIC_ERROR_FILE": str(tmp_path / "plan.json" / "error.json")}
    results = fork_ranks(
        run_rank, 1, tmp_path, tmp_path / "plan.json", tmp_path, environment=nowhere
    )
    assert results[0].value == 1
    assert "plan has schema 99" in read_logs(tmp_path)


def run_interrupted(run_dir: Path) -> int:
    with mock.patch("parctl.runtime.worker.plan_from_json", side_effect=KeyboardInterrupt):
        return run_rank(run_dir / "plan.json", run_dir)


def test_whatever_ends_a_rank_is_told(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{}")
    assert run_ranks(run_interrupted, 1, tmp_path, tmp_path) == [1]
    assert "KeyboardInterrupt" in read_logs(tmp_path)
    assert error_message(tmp_path, 0).startswith("KeyboardInterrupt")


@pytest.mark.parametrize("every", [0, 2])
def test_validation_is_reported(every: int, text: Path, tmp_path: Path) -> None:
    metrics = train_to_end(plan(text, {"fsdp": 2}, train={"validate_every": every}), tmp_path)
    reported = [m["step"] for m in metrics if m["validation_loss"] is not None]
    assert reported == ([] if every == 0 else [2, 4])


def test_validation_does_not_change_training(text: Path, tmp_path: Path) -> None:
    plain = train_to_end(plan(text, {"dp": 2}), tmp_path / "plain")
    watched = train_to_end(plan(text, {"dp": 2}, train={"validate_every": 1}), tmp_path / "watched")
    for ours, theirs in zip(plain, watched, strict=True):
        assert (ours["loss"], ours["grad_norm"]) == (theirs["loss"], theirs["grad_norm"])


def test_validation_loss_does_not_depend_on_the_layout(text: Path, tmp_path: Path) -> None:
    """The held-out text is shorter than the 3 global batches asked for: the rest is not counted."""
    train = {"validate_every": 4, "validate_batches": 50, "steps": 4}
    one = train_to_end(plan(text, {}, train=train), tmp_path / "one")
    split = train_to_end(plan(text, {"fsdp": 2, "tp": 2}, sp=True, train=train), tmp_path / "split")
    assert split[-1]["validation_loss"] == pytest.approx(one[-1]["validation_loss"], rel=1e-10)
