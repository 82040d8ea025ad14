"""Checkpoints survive being killed, and continue the same curve on any layout."""

import json
import os
import re
import resource
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.runtime.harness import read_logs, read_metrics, run_plan, train_to_end
from tests.runtime.plans import GPT, LLAMA, plan
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from parctl.runtime.checkpoint.directory import LOCK, find_checkpoints

SIX = {"steps": 6}


def curve(metrics: list[dict[str, Any]]) -> dict[int, tuple[float, float]]:
    """Last record of every step."""
    return {record["step"]: (record["loss"], record["grad_norm"]) for record in metrics}


def give(source: Path, step: int, target: Path) -> None:
    """Put the checkpoint of `step` where the run in `target` looks for it."""
    name = f"checkpoints/step-{step:08d}"
    shutil.copytree(source / name, target / name)


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir() if path.name != LOCK)


def test_resuming_on_the_same_layout_repeats_every_bit(text: Path, tmp_path: Path) -> None:
    """Dropout included: its masks follow from seed, step and rank."""
    made = plan(
        text,
        {"fsdp": 2, "tp": 2},
        sp=True,
        model=replace(GPT, dropout=0.1),
        train={**SIX, "precision": "fp32"},
        checkpoint={"every": 3},
    )
    undisturbed = curve(train_to_end(made, tmp_path / "undisturbed"))
    give(tmp_path / "undisturbed", 3, tmp_path / "resumed")
    resumed = curve(train_to_end(made, tmp_path / "resumed"))
    assert sorted(resumed) == [4, 5, 6]
    assert all(resumed[step] == undisturbed[step] for step in resumed)


def test_a_checkpoint_says_where_training_stands(text: Path, tmp_path: Path) -> None:
    made = plan(text, {"dp": 2}, train={"steps": 3}, checkpoint={"at_end": True})
    train_to_end(made, tmp_path)
    directory = tmp_path / "checkpoints" / "step-00000003"
    content = json.loads((directory / "parctl.json").read_text())
    assert content["plan_hash"] == made.hash
    assert (content["step"], content["tokens"], content["cursor"]) == (3, 3 * 8 * 16, 24)
    assert (directory / "COMPLETE").exists()


def test_tensors_have_the_plain_names(text: Path, tmp_path: Path) -> None:
    made = plan(
        text,
        {"fsdp": 2, "tp": 2},
        train={"steps": 1, "recompute": "full"},
        checkpoint={"at_end": True},
    )
    train_to_end(made, tmp_path)
    stored = FileSystemReader(tmp_path / "checkpoints" / "step-00000001").read_metadata()
    sizes = {
        name: tuple(tensor.size)
        for name, tensor in stored.state_dict_metadata.items()
        if isinstance(tensor, TensorStorageMetadata)
    }
    assert sizes["model.blocks.1.feed_forward.w_down.weight"] == (32, 48)
    assert sizes["optimizer.exp_avg.embedding.weight"] == (256, 32)
    assert len(sizes) == 3 * (1 + 2 * 9 + 1 + 1)  # embedding, 9 per block, final norm, head
    assert not [name for name in sizes if "wrapped" in name]


def test_a_tied_head_is_stored_once(text: Path, tmp_path: Path) -> None:
    made = plan(text, {}, model=GPT, train={"steps": 1}, checkpoint={"at_end": True})
    train_to_end(made, tmp_path)
    stored = FileSystemReader(tmp_path / "checkpoints" / "step-00000001").read_metadata()
    assert "model.embedding.weight" in stored.state_dict_metadata
    assert "model.head.weight" not in stored.state_dict_metadata


def test_only_the_newest_are_kept(text: Path, tmp_path: Path) -> None:
    made = plan(text, {}, train={"steps": 5}, checkpoint={"every": 1, "keep": 2})
    train_to_end(made, tmp_path)
    assert names(tmp_path) == ["step-00000004", "step-00000005"]


def test_killed_in_the_middle_of_a_save_the_one_before_is_found(text: Path, tmp_path: Path) -> None:
    made = plan(text, {"fsdp": 2}, train={"steps": 1000}, checkpoint={"every": 2})
    checkpoints = tmp_path / "checkpoints"

    def kill_during_third_save(pids: list[int]) -> None:
        while not (checkpoints / ".saving-step-00000006").exists():
            time.sleep(0.0005)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    assert run_plan(made, tmp_path, while_running=kill_during_third_save) == [-9, -9]
    assert names(tmp_path) == [".saving-step-00000006", "step-00000002", "step-00000004"]
    before = len(read_metrics(tmp_path))
    short = plan(text, {"fsdp": 2}, train={"steps": 7}, checkpoint={"every": 2})
    train_to_end(short, tmp_path)
    assert read_metrics(tmp_path)[before]["step"] == 5
    assert "skipping .saving-step-00000006: its save did not complete" in read_logs(tmp_path)
    assert names(tmp_path) == ["step-00000002", "step-00000004", "step-00000006"]


def test_a_checkpoint_without_its_mark_is_skipped(text: Path, tmp_path: Path) -> None:
    made = plan(text, {}, train={"steps": 4}, checkpoint={"every": 2})
    train_to_end(made, tmp_path)
    (tmp_path / "checkpoints" / "step-00000004" / "COMPLETE").unlink()
    train_to_end(made, tmp_path)
    assert "resuming from step-00000002" in read_logs(tmp_path)
    assert (tmp_path / "checkpoints" / "step-00000004" / "COMPLETE").exists()


def test_a_damaged_checkpoint_is_passed_over_and_replaced(text: Path, tmp_path: Path) -> None:
    """Step 4 lost a file, step 3 has a changed byte: step 2 goes on."""
    made = plan(text, {"fsdp": 2}, train={"steps": 4}, checkpoint={"every": 1})
    train_to_end(made, tmp_path)
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "step-00000004" / "__1_0.distcp").unlink()
    changed = checkpoints / "step-00000003" / "__0_0.distcp"
    content = bytearray(changed.read_bytes())
    content[len(content) // 2] ^= 1
    changed.write_bytes(content)
    train_to_end(made, tmp_path)
    log = read_logs(tmp_path)
    assert "skipping step-00000004: __1_0.distcp is gone" in log
    assert "skipping step-00000003: __0_0.distcp is not what was written" in log
    assert "resuming from step-00000002" in log
    assert find_checkpoints(checkpoints).damaged == {}
    assert len(find_checkpoints(checkpoints).whole) == 4


def test_with_every_checkpoint_damaged_nothing_is_started_over(text: Path, tmp_path: Path) -> None:
    train_to_end(plan(text, {}, train={"steps": 1}, checkpoint={"at_end": True}), tmp_path)
    (damaged,) = (tmp_path / "checkpoints" / "step-00000001").glob("*.distcp")
    damaged.unlink()
    log = refusal(plan(text, {}, train={"steps": 2}), tmp_path)
    assert "is damaged; step-00000001: __0_0.distcp is gone" in log
    assert "hint: remove them to start over" in log
    assert "Traceback" not in log


def test_saving_in_the_background_changes_no_bit(text: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"sp": True, "train": {**SIX, "precision": "fp32"}}
    model = replace(GPT, dropout=0.1)
    axes = {"fsdp": 2, "tp": 2}
    plain = plan(text, axes, model=model, checkpoint={"every": 3}, **options)
    later = plan(text, axes, model=model, checkpoint={"every": 3, "async_save": True}, **options)
    undisturbed = curve(train_to_end(plain, tmp_path / "plain"))
    assert curve(train_to_end(later, tmp_path / "later")) == undisturbed
    give(tmp_path / "later", 3, tmp_path / "resumed")
    resumed = curve(train_to_end(plain, tmp_path / "resumed"))
    assert resumed == {step: undisturbed[step] for step in (4, 5, 6)}
    assert names(tmp_path / "later") == ["step-00000003", "step-00000006"]


def test_killed_while_a_background_save_writes_the_one_before_is_found(
    text: Path, tmp_path: Path
) -> None:
    spec = {"every": 2, "async_save": True}
    made = plan(text, {"fsdp": 2}, train={"steps": 1000}, checkpoint=spec)
    checkpoints = tmp_path / "checkpoints"

    def kill_during_third_save(pids: list[int]) -> None:
        while not (checkpoints / ".saving-step-00000006").exists():
            time.sleep(0.0005)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    assert run_plan(made, tmp_path, while_running=kill_during_third_save) == [-9, -9]
    assert names(tmp_path) == [".saving-step-00000006", "step-00000002", "step-00000004"]


def test_sigterm_waits_for_the_save_in_the_background(text: Path, tmp_path: Path) -> None:
    spec = {"every": 1, "async_save": True, "keep": 2}
    made = plan(text, {"fsdp": 2}, train={"steps": 100_000}, checkpoint=spec)

    def stop(pids: list[int]) -> None:
        while not (tmp_path / "checkpoints" / "step-00000002").exists():
            time.sleep(0.0005)
        os.kill(pids[1], signal.SIGTERM)

    assert run_plan(made, tmp_path, while_running=stop) == [143, 143]
    found = find_checkpoints(tmp_path / "checkpoints")
    assert (len(found.whole), found.torn, found.damaged) == (2, (), {})
    last = read_metrics(tmp_path)[-1]["step"]
    assert found.whole[-1].name == f"step-{last:08d}"


def test_a_second_live_run_is_kept_out_of_the_directory(text: Path, tmp_path: Path) -> None:
    shared = {"dir": f"file://{tmp_path}/shared"}
    endless = plan(text, {}, train={"steps": 1_000_000}, checkpoint=shared)

    def start_another(pids: list[int]) -> None:
        while not (tmp_path / "shared" / LOCK).exists() or not (tmp_path / "a").exists():
            time.sleep(0.001)
        time.sleep(0.3)
        log = refusal(plan(text, {}, checkpoint=shared), tmp_path / "b")
        assert "is in use by run test-000000" in log
        os.kill(pids[0], signal.SIGKILL)

    assert run_plan(endless, tmp_path / "a", while_running=start_another) == [-9]
    train_to_end(plan(text, {}, checkpoint=shared), tmp_path / "c")  # a dead run's lock is free


def test_a_save_that_fails_is_told_and_leaves_those_before(text: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk, which needs a mount."""
    made = plan(text, {"fsdp": 2}, train={"steps": 1000}, checkpoint={"every": 2})

    def forbid_large_files(pids: list[int]) -> None:
        while not (tmp_path / "checkpoints" / "step-00000002").exists():
            time.sleep(0.0005)
        for pid in pids:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (50_000, 50_000))

    assert run_plan(made, tmp_path, while_running=forbid_large_files) == [1, 1]
    log = read_logs(tmp_path)
    assert re.search(r"error: cannot write \S+/step-\d+, \d+\.\d GB are free there: ", log)
    assert "hint: the checkpoints before it are whole" in log
    assert "Traceback" not in log
    assert (tmp_path / "checkpoints" / "step-00000002" / "COMPLETE").exists()


def test_a_background_save_that_fails_ends_the_run_before_the_next_one(
    text: Path, tmp_path: Path
) -> None:
    spec = {"every": 200, "async_save": True}
    # few lines of metrics: their file is under the limit too
    made = plan(text, {"fsdp": 2}, train={"steps": 100_000, "log_every": 5}, checkpoint=spec)

    def forbid_large_files(pids: list[int]) -> None:
        while not (tmp_path / "metrics.jsonl").exists():
            time.sleep(0.0005)
        for pid in pids:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (100_000, 100_000))

    assert run_plan(made, tmp_path, while_running=forbid_large_files) == [1, 1]
    log = read_logs(tmp_path)
    assert "the save of step-00000200 failed: " in log
    assert re.search(r"error: cannot write \S+/step-00000200, ", log)
    assert 200 <= read_metrics(tmp_path)[-1]["step"] < 400
    assert names(tmp_path) == [".saving-step-00000200"]


def test_a_finished_run_started_again_makes_no_step(text: Path, tmp_path: Path) -> None:
    made = plan(text, {}, train={"steps": 2}, checkpoint={"at_end": True})
    train_to_end(made, tmp_path)
    train_to_end(made, tmp_path)
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2]
    assert "resuming from step-00000002, 0 of 2 steps left" in read_logs(tmp_path)


def refusal(made: Any, run_dir: Path, **environment: str) -> str:
    assert run_plan(made, run_dir, environment=environment) == [1]
    return read_logs(run_dir)


def test_what_a_checkpoint_does_not_fit_is_refused(text: Path, tmp_path: Path) -> None:
    shared = {"dir": str(tmp_path / "shared"), "at_end": True, "resume": False}
    train_to_end(plan(text, {}, train={"steps": 1}, checkpoint=shared), tmp_path / "first")
    other_run = plan(text, {}, train={"steps": 2}, checkpoint=shared)
    log = refusal(other_run, tmp_path / "a", PARCTL_RUN_ID="other-111111")
    assert "already holds step-00000001 of another run" in log
    wide = replace(LLAMA, dim=64)
    other_model = plan(text, {}, model=wide, train={"steps": 2}, checkpoint=shared)
    assert "dim is 32 there and 64 in the recipe" in refusal(other_model, tmp_path / "b")
    other_batch = plan(text, {}, train={"steps": 2, "global_batch": 4}, checkpoint=shared)
    assert "another train.seq_len or train.global_batch" in refusal(other_batch, tmp_path / "c")
