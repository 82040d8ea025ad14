"""What a first look into the data finds, before any process starts."""

import json
from array import array
from dataclasses import replace
from pathlib import Path

import pytest
from tests.runtime.plans import LLAMA, plan

from parctl.errors import UsageError
from parctl.launcher.launch import launch_plan
from parctl.launcher.places import runs_root
from parctl.runtime.data.check import refuse_bad_data
from parctl.runtime.data.sample import BLOCK_BYTES, NUM_BLOCKS


def refuse(path: Path, vocab_size: int = 256) -> None:
    data = plan(path, {}).recipe.data
    assert data
    refuse_bad_data(data, replace(LLAMA, vocab_size=vocab_size))


def test_a_binary_file_is_refused_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"fine\n\x7fELF\x00\x01\n")
    with pytest.raises(UsageError, match=r"text.txt:2: a NUL byte, so this is a binary file"):
        refuse(path)
    path.write_bytes(b"fine\nnot \xff text\n")
    with pytest.raises(UsageError, match=r"text.txt:2: byte 5 of the line is not UTF-8"):
        refuse(path)


def test_only_the_beginning_of_a_text_is_read(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"fine\n" * 100_000 + b"\x00")
    refuse(path)
    path.write_bytes("\u20ac".encode() * 100_000)  # one long line, cut inside a character
    refuse(path)


def test_the_first_row_of_a_jsonl_file_must_hold_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"body": "text"}) + "\n")
    with pytest.raises(UsageError, match=r"rows.jsonl:1: no text under the key `text`"):
        refuse(path)


def test_ids_outside_of_the_vocabulary_are_refused_by_their_place(tmp_path: Path) -> None:
    path = tmp_path / "tokens.bin"
    ids = array("H", [7] * 5000)
    ids[4321] = 300
    path.write_bytes(ids.tobytes())
    refuse(path, vocab_size=301)
    with pytest.raises(UsageError, match=r"token 4321 is 300, but model.vocab_size is 256"):
        refuse(path)


def test_of_a_large_tokenised_file_blocks_are_read_up_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "tokens.bin"
    num_blocks = 4 * NUM_BLOCKS
    ids = array("H", [7]) * (num_blocks * BLOCK_BYTES // 2)
    ids[252 * BLOCK_BYTES // 2] = 999  # the first of the 64th block that is read
    path.write_bytes(ids.tobytes())
    with pytest.raises(UsageError, match=r"token 8257536 is 999"):
        refuse(path)


def test_a_tokenised_file_of_another_width_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokens.bin"
    path.write_bytes(b"\0" * 6)
    with pytest.raises(UsageError, match="6 bytes is no multiple of 4") as caught:
        refuse(path, vocab_size=100_000)
    assert caught.value.hint == "ids are uint32 for a vocabulary of 100000"


def test_a_launch_looks_before_there_is_a_run(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"\x00")
    with pytest.raises(UsageError, match="binary file"):
        launch_plan(plan(path, {}), run_id="binary-1")
    assert not (runs_root() / "binary-1").exists()
