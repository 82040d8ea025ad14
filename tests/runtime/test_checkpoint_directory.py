"""Which directories count as checkpoints, and which are passed over and why."""

import json
from pathlib import Path

import pytest

from parctl.errors import UsageError
from parctl.runtime.checkpoint.directory import (
    COMPLETE,
    complete,
    find_checkpoints,
    local_path,
    lock,
    partial_path,
    record,
    remove_old,
    wrong_content,
)


def make(directory: Path, step: int) -> Path:
    """Write a checkpoint as a save does."""
    partial = partial_path(directory / f"step-{step:08d}")
    partial.mkdir(parents=True)
    for name in ("__0_0.distcp", "__1_0.distcp", ".metadata"):
        (partial / name).write_bytes(f"{name} of step {step}".encode())
    return complete(
        partial, {"step": step}, {path.name: record(path) for path in partial.iterdir()}
    )


def test_the_record_of_a_file_is_its_size_and_crc32(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"123456789")
    found = record(tmp_path / "file")
    assert (found.num_bytes, found.crc32) == (9, 0xCBF43926)  # the check value of CRC-32


def test_whole_torn_and_damaged_are_told_apart(tmp_path: Path) -> None:
    checkpoints = [make(tmp_path, step) for step in (1, 2, 3, 4, 5, 6)]
    (checkpoints[1] / COMPLETE).unlink()
    (checkpoints[2] / "__1_0.distcp").unlink()
    (checkpoints[3] / "__0_0.distcp").write_bytes(b"short")
    (checkpoints[4] / COMPLETE).write_text("")
    (tmp_path / ".saving-step-00000007").mkdir()
    (tmp_path / "notes.txt").touch()
    found = find_checkpoints(tmp_path)
    assert found.whole == (checkpoints[0], checkpoints[5])
    assert found.torn == (checkpoints[1], tmp_path / ".saving-step-00000007")
    assert found.damaged == {
        checkpoints[2]: "__1_0.distcp is gone",
        checkpoints[3]: "__0_0.distcp has 5 bytes, 22 were written",
        checkpoints[4]: "COMPLETE lists no files",
    }


def test_a_changed_byte_is_found_by_the_rank_that_reads_the_file(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, 1)
    path = checkpoint / "__1_0.distcp"
    path.write_bytes(path.read_bytes().replace(b"step", b"stop"))
    assert find_checkpoints(tmp_path).whole == (checkpoint,)
    assert [wrong_content(checkpoint, share=share, of=4) for share in range(4)] == [
        None,  # sorted: .metadata, __0, __1, parctl.json
        None,
        "__1_0.distcp is not what was written: its checksum differs",
        None,
    ]


def test_a_new_checkpoint_takes_the_place_of_a_damaged_one(tmp_path: Path) -> None:
    (make(tmp_path, 1) / "__0_0.distcp").write_bytes(b"")
    checkpoint = make(tmp_path, 1)
    assert find_checkpoints(tmp_path).whole == (checkpoint,)
    assert json.loads((checkpoint / "parctl.json").read_text()) == {"step": 1}


def test_damaged_ones_do_not_count_as_kept(tmp_path: Path) -> None:
    checkpoints = [make(tmp_path, step) for step in (1, 2, 3, 4)]
    (checkpoints[0] / "__0_0.distcp").unlink()
    (checkpoints[3] / "__0_0.distcp").unlink()
    remove_old(tmp_path, keep=1)
    assert sorted(tmp_path.iterdir()) == checkpoints[2:]


def test_a_second_run_is_told_who_is_there(tmp_path: Path) -> None:
    held = lock(tmp_path, run="first-111111")
    with pytest.raises(UsageError, match="in use by run first-111111"):
        lock(tmp_path, run="second-222222")
    held.close()
    lock(tmp_path, run="second-222222").close()


def test_addresses_of_files_are_paths() -> None:
    assert local_path("/mnt/run") == Path("/mnt/run")
    assert local_path("file:///mnt/run%201") == Path("/mnt/run 1")
    assert local_path("file://localhost/mnt/run") == Path("/mnt/run")
    with pytest.raises(UsageError, match="another machine, storage"):
        local_path("file://storage/mnt/run")
