"""Data that no rank could open is refused before any process starts."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.runtime.plans import LLAMA, plan
from tokenizers import Tokenizer
from tokenizers.models import BPE, Unigram
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.trainers import BpeTrainer

from parctl.errors import UsageError
from parctl.launcher.launch import launch_plan
from parctl.launcher.places import runs_root
from parctl.recipes.spec import DataSpec
from parctl.runtime.data.check import num_ids, refuse_bad_data
from parctl.runtime.data.tokenizer import load_tokenizer


@pytest.fixture
def bpe(tmp_path: Path) -> Path:
    """A byte-pair tokenizer learned here, of 40 ids."""
    tokenizer = Tokenizer(BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.train_from_iterator(
        ["the quick brown fox jumps over the lazy dog, the fox the dog"] * 5,
        BpeTrainer(vocab_size=40, special_tokens=["[UNK]", "</s>"], show_progress=False),
    )
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def data(text: Path, *, tokenizer: Path | str = "byte") -> DataSpec:
    made = plan(text, {}).recipe.data
    assert made
    return replace(made, tokenizer=str(tokenizer))


def test_the_file_tells_as_many_ids_as_the_tokenizer(bpe: Path, tmp_path: Path) -> None:
    assert num_ids(bpe) == load_tokenizer(str(bpe), vocab_size=40).num_ids == 40
    unigram = Tokenizer(Unigram([("a", -1.0), ("b", -2.0)], unk_id=0))
    unigram.add_special_tokens(["</s>"])
    unigram.save(str(tmp_path / "unigram.json"))
    assert num_ids(tmp_path / "unigram.json") == 3


def test_a_vocabulary_that_cannot_hold_the_tokenizer_is_refused(bpe: Path, text: Path) -> None:
    refuse_bad_data(data(text, tokenizer=bpe), replace(LLAMA, vocab_size=40))
    with pytest.raises(
        UsageError, match=r"makes ids up to 39, but model.vocab_size is 39"
    ) as caught:
        refuse_bad_data(data(text, tokenizer=bpe), replace(LLAMA, vocab_size=39))
    assert caught.value.hint == "set model.vocab_size to 40 or more"


def test_what_is_no_tokenizer_is_refused(text: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        refuse_bad_data(data(text, tokenizer=tmp_path / "none.json"), LLAMA)
    for content in (b"", b"[]", b"{}", b'{"model": {"vocab": 3}}', b"\xff", b'{"model": null}'):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(UsageError, match=r"not a Hugging Face tokenizer\.json"):
            refuse_bad_data(data(text, tokenizer=tmp_path / "bad.json"), LLAMA)


def test_a_launch_refuses_before_there_is_a_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.txt: no such file"):
        launch_plan(plan(tmp_path / "none.txt", {}), run_id="none-1")
    assert not (runs_root() / "none-1").exists()
