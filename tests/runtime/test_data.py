"""Data: nothing is lost, nothing depends on the layout, and every fault names its place."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.runtime.plans import TRAIN

from parctl.errors import UsageError
from parctl.recipes.spec import DataSpec
from parctl.runtime.data.batches import TextBatches, shuffled
from parctl.runtime.data.tokenizer import ByteTokenizer, load_tokenizer
from parctl.runtime.data.tokens import TokenStream, open_stream
from parctl.runtime.parallel.mesh import RankMesh

DATA = DataSpec(
    train=(),
    validation=(),
    validation_fraction=0.1,
    format="auto",
    text_key="text",
    tokenizer="byte",
    document_mask=False,
    end_token=None,
)


def stream(tmp_path: Path, *sources: Path | str, spec: DataSpec = DATA) -> TokenStream:
    return open_stream(
        [str(source) for source in sources],
        spec,
        vocab_size=256,
        directory=tmp_path / "cache",
        leader=True,
        barrier=lambda: None,
    )


def mesh(data_rank: int = 0, data_size: int = 1) -> RankMesh:
    axes = {"pp": 1, "dp": 1, "fsdp": data_size, "cp": 1, "tp": 1}
    return RankMesh(
        rank=data_rank,
        device=torch.device("cpu"),
        devices=None,  # type: ignore[arg-type]  # batches need no group
        tokens=None,
        experts=None,
        sizes=axes,
        coordinates={**dict.fromkeys(axes, 0), "fsdp": data_rank},
    )


def refusal(tmp_path: Path, *sources: Path | str, spec: DataSpec = DATA) -> str:
    with pytest.raises(UsageError) as caught:
        stream(tmp_path, *sources, spec=spec)
    assert caught.value.hint
    return caught.value.message


def test_documents_lie_end_to_end_with_a_mark_between(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("ab\n")
    (tmp_path / "b.jsonl").write_text('{"text": "c"}\n\n{"text": "\u00e9"}\n')
    tokens = stream(tmp_path, tmp_path / "a.txt", tmp_path / "b.jsonl")
    assert tokens.read(0, len(tokens)).tolist() == [97, 98, 10, 0, 99, 0, 0xC3, 0xA9, 0]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfab")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "c"}\r\n')
    tokens = stream(tmp_path, tmp_path / "a.txt", tmp_path / "b.jsonl")
    assert tokens.read(0, len(tokens)).tolist() == [97, 98, 0, 99, 0]


def test_globs_are_sorted_and_the_shipped_corpus_is_found(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / f"{name}.txt").write_text(name)
    tokens = stream(tmp_path, tmp_path / "*.txt")
    assert tokens.read(0, 4).tolist() == [97, 0, 98, 0]
    assert len(stream(tmp_path, "corpus://guide")) > 10_000


def test_tokenised_files_are_read_across_their_edges(tmp_path: Path) -> None:
    np.array([1, 2, 3], dtype="<u2").tofile(tmp_path / "a.bin")
    np.array([4, 5], dtype="<u2").tofile(tmp_path / "b.bin")
    tokens = stream(tmp_path, tmp_path / "a.bin", tmp_path / "b.bin")
    assert tokens.read(1, 3).tolist() == [2, 3, 4]
    head, tail = tokens.split(3)
    assert (len(head), len(tail), tail.read(0, 2).tolist()) == (3, 2, [4, 5])


def test_text_is_tokenised_once(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc")
    stream(tmp_path, tmp_path / "a.txt")
    (cache,) = (tmp_path / "cache").iterdir()
    written = cache.stat().st_mtime_ns
    stream(tmp_path, tmp_path / "a.txt")
    assert cache.stat().st_mtime_ns == written


def test_faults_name_the_file_and_the_line(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    assert f"{tmp_path}/none.txt: no such file" in refusal(tmp_path, tmp_path / "none.txt")
    assert "is a directory" in refusal(tmp_path, tmp_path)
    assert "matches no file" in refusal(tmp_path, tmp_path / "*.md")
    path.write_text("")
    assert f"{path}: is empty" in refusal(tmp_path, path)
    path.write_text('{"text": "a"}\n{"text": oops}\n')
    assert f"{path}:2:10: not JSON" in refusal(tmp_path, path)
    path.write_text('{"text": "a"}\n{"body": "b", "id": 1}\n')
    assert f"{path}:2: no text under the key `text`, found: body, id" in refusal(tmp_path, path)
    path.write_text("[1]\n")
    assert f"{path}:1: no text under the key `text`, found: a list" in refusal(tmp_path, path)
    path.write_text('{"text": "a"}\n{"text": "\\ud83d"}\n')
    assert f"{path}:2: '\\ud83d' is half of a surrogate pair" in refusal(tmp_path, path)
    path.write_text('{"text": "a", "id": ' + "9" * 5000 + "}\n")
    assert f"{path}:1: not JSON that can be read: Exceeds the limit" in refusal(tmp_path, path)
    path.write_text("[" * 100_000)
    assert f"{path}:1: not JSON that can be read: maximum recursion" in refusal(tmp_path, path)
    path.write_text("\n \n")
    assert "holds no text" in refusal(tmp_path, path)


def test_binary_files_are_not_taken_for_text(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"fine\n\x7fELF\0\0")
    assert f"{path}:2: a NUL byte" in refusal(tmp_path, path)
    path.write_bytes(b"fine\nfine\ncaf\xe9 \n")
    assert f"{path}:3: byte 4 of the line is not UTF-8" in refusal(tmp_path, path)
    odd = tmp_path / "x.bin"
    odd.write_bytes(b"abc")
    assert "3 bytes is no multiple of 2" in refusal(tmp_path, odd)
    assert "mixes tokenised files with text" in refusal(tmp_path, odd, path)


def test_a_token_outside_the_vocabulary_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    np.array([1, 2, 300], dtype="<u2").tofile(path)
    tokens = stream(tmp_path, path)
    assert tokens.read(0, 2).tolist() == [1, 2]
    with pytest.raises(UsageError, match=r"a\.bin: token 2 is 300, but model.vocab_size is 256"):
        tokens.read(1, 2)


@pytest.mark.parametrize("length", [1, 2, 3, 5, 16, 17, 100, 1000])
def test_shuffling_is_a_permutation_that_the_key_chooses(length: int) -> None:
    places = np.arange(length)
    first = shuffled(places, length, key=1)
    assert sorted(first) == list(range(length))
    assert np.array_equal(first, shuffled(places, length, key=1))
    if length >= 16:
        assert not np.array_equal(first, shuffled(places, length, key=2))
        assert not np.array_equal(first, places)


def test_shuffling_leaves_no_order_behind() -> None:
    """Neighbours of a random permutation of 0 to n-1 are n/3 apart on average."""
    order = shuffled(np.arange(10_000), 10_000, key=3)
    assert 3_100 < np.abs(np.diff(order)).mean() < 3_560


def counting_stream(tmp_path: Path, num_tokens: int) -> TokenStream:
    path = tmp_path / "count.bin"
    (np.arange(num_tokens) % 256).astype("<u2").tofile(path)
    return stream(tmp_path, path)


def rows(batches: TextBatches, cursor: int) -> list[list[int]]:
    return [row for batch in batches.training(cursor) for row in batch.tokens.tolist()]


def test_targets_are_the_next_tokens(tmp_path: Path) -> None:
    batches = TextBatches(counting_stream(tmp_path, 200), TRAIN, mesh(), what="train")
    for batch in batches.training(0):
        assert batch.tokens.shape == (2, 16)
        assert torch.equal(batch.targets[:, :-1], batch.tokens[:, 1:])
        assert torch.equal(batch.targets, batch.tokens + 1)


def test_the_global_batch_does_not_depend_on_the_number_of_data_ranks(tmp_path: Path) -> None:
    tokens = counting_stream(tmp_path, 250)
    whole = rows(TextBatches(tokens, TRAIN, mesh(), what="train"), cursor=16)
    parts = [rows(TextBatches(tokens, TRAIN, mesh(rank, 4), what="train"), 16) for rank in range(4)]
    assert [len(part) for part in parts] == [2, 2, 2, 2]
    assert [row for part in parts for row in part] == whole


def test_micro_batches_of_all_ranks_together_are_slices_of_the_global_batch(
    tmp_path: Path,
) -> None:
    """8 sequences, 2 ranks, 2 per micro-batch: rank 0 has 0 1 and 4 5, rank 1 has 2 3 and 6 7."""
    tokens = counting_stream(tmp_path, 250)
    whole = rows(TextBatches(tokens, TRAIN, mesh(), what="train"), cursor=8)
    first, second = (
        rows(TextBatches(tokens, TRAIN, mesh(rank, 2), what="train"), 8) for rank in (0, 1)
    )
    assert first == whole[0:2] + whole[4:6]
    assert second == whole[2:4] + whole[6:8]


def test_an_epoch_uses_every_sequence_once_and_the_next_in_another_order(tmp_path: Path) -> None:
    """241 tokens are 15 sequences of 16 and a target; two epochs are 30 of the 32 in 4 batches."""
    batches = TextBatches(counting_stream(tmp_path, 241), TRAIN, mesh(), what="train")
    first_tokens = [row[0] for cursor in (0, 8, 16, 24) for row in rows(batches, cursor)]
    assert sorted(first_tokens[:15]) == sorted(first_tokens[15:30]) == list(range(0, 240, 16))
    assert first_tokens[:15] != first_tokens[15:30]


def test_a_short_last_validation_batch_counts_its_own_tokens_only(tmp_path: Path) -> None:
    batches = TextBatches(counting_stream(tmp_path, 11 * 16 + 1), TRAIN, mesh(), what="validation")
    assert [batches.validation_rows(index) for index in range(3)] == [8, 3, 0]
    targets = torch.cat([batch.targets for batch in batches.validation(1)])
    assert (targets >= 0).sum() == 3 * 16
    assert all(int(batch.tokens.min()) >= 0 for batch in batches.validation(1))


def test_text_shorter_than_a_sequence_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"data.train holds 16 tokens, .* = 17"):
        TextBatches(counting_stream(tmp_path, 16), TRAIN, mesh(), what="train")


def test_the_byte_tokenizer_gives_bytes() -> None:
    assert ByteTokenizer().encode("a\u00e9").tolist() == [97, 0xC3, 0xA9, 0]


def test_a_hugging_face_tokenizer_is_read(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    path = tmp_path / "tokenizer.json"
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "red": 1, "fox": 2, "</s>": 7}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(path))
    assert load_tokenizer(str(path), vocab_size=8).encode("red fox owl").tolist() == [1, 2, 0, 7]
    with pytest.raises(UsageError, match=r"makes ids up to 7, but model.vocab_size is 4"):
        load_tokenizer(str(path), vocab_size=4)
    (tmp_path / "words.txt").write_text("fox red")
    tokens = stream(tmp_path, tmp_path / "words.txt", spec=replace(DATA, tokenizer=str(path)))
    assert tokens.read(0, 3).tolist() == [2, 1, 7]


def test_a_wrong_tokenizer_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        load_tokenizer(str(tmp_path / "none.json"), vocab_size=300)
    (tmp_path / "bad.json").write_text(json.dumps({"model": 1}))
    with pytest.raises(UsageError, match=r"not a Hugging Face tokenizer.json"):
        load_tokenizer(str(tmp_path / "bad.json"), vocab_size=300)
