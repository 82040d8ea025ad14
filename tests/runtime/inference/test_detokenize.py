"""Text out of tokens as they come: never half a character, never another text than the whole."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime.inference.bpe import save_bpe

from parctl.errors import UsageError
from parctl.runtime.inference.detokenize import (
    BYTE_TOKEN,
    ByteText,
    FileText,
    StopStrings,
    TextTokenizer,
    load_text,
    spelled_bytes,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    save_bpe(path)
    return path


@pytest.fixture(scope="module")
def bpe(folder: Path) -> FileText:
    return FileText(folder / "tokenizer.json")


def spell(tokenizer: TextTokenizer, tokens: list[int]) -> list[str]:
    detokenizer = tokenizer.detokenizer()
    return [*(detokenizer.add(token) for token in tokens), detokenizer.finish()]


def token_of(tokenizer: FileText, name: str) -> int:
    return next(token for token in range(tokenizer.num_ids) if tokenizer.name(token) == name)


def test_a_character_comes_when_its_last_byte_does() -> None:
    assert spell(ByteText(), [0x41, 0xE2, 0x82, 0xAC, 0x42]) == ["A", "", "", "\u20ac", "B", ""]


def test_what_is_no_utf8_is_replaced() -> None:
    assert spell(ByteText(), [0xFF, 0x41, 0xE2]) == ["\ufffd", "A", "", "\ufffd"]


def test_tokens_beyond_bytes_stand_for_nothing() -> None:
    assert spell(ByteText(), [0x41, 299]) == ["A", "", ""]
    assert ByteText().piece(299) == b""


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(max_size=30))
def test_any_text_comes_back_from_bytes(text: str) -> None:
    assert "".join(spell(ByteText(), ByteText().encode(text, whole=True))) == text


@settings(max_examples=200, deadline=None, derandomize=True)
@given(text=st.text(max_size=30))
def test_any_text_comes_back_from_a_file(bpe: FileText, text: str) -> None:
    parts = spell(bpe, bpe.encode(text, whole=False))
    assert "".join(parts) == text
    assert not any("\ufffd" in part for part in parts if "\ufffd" not in text)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(tokens=st.lists(st.integers(2, 299), max_size=40))
def test_any_tokens_read_as_all_of_them_do_at_once(bpe: FileText, tokens: list[int]) -> None:
    """But for how many marks an impossible run of bytes is replaced by."""
    whole = bpe.decode(tokens).replace("\ufffd", "")
    assert "".join(spell(bpe, tokens)).replace("\ufffd", "") == whole


def test_a_character_after_bytes_that_are_none_is_not_split(bpe: FileText) -> None:
    """However many came before, the first bytes of a character wait for its last."""
    letters = {byte: letter for letter, byte in spelled_bytes().items()}
    for text in ("\u0599", "\u4f60", "\U0001f600"):
        for many in range(1, 40):
            spelled = b"\xff" * many + text.encode() + b"\xd6"
            tokens = [token_of(bpe, letters[byte]) for byte in spelled]
            assert "".join(spell(bpe, tokens)) == "\ufffd" * many + text + "\ufffd"


def test_bytes_are_read_from_both_spellings_of_vocabularies(bpe: FileText) -> None:
    assert len(spelled_bytes()) == 256 and sorted(spelled_bytes().values()) == list(range(256))
    assert spelled_bytes()["\u0120"] == 0x20
    assert bpe.raw(token_of(bpe, "\u00d6")) == b"\xd6"
    assert BYTE_TOKEN.fullmatch("<0xD6>")


def test_what_ends_a_text_is_read_beside_the_tokenizer(bpe: FileText, folder: Path) -> None:
    assert bpe.stop_tokens == (1,)
    assert load_text("byte").stop_tokens == (0,)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 6]}))
    assert FileText(folder / "tokenizer.json").stop_tokens == (5, 6, 1)
    (folder / "generation_config.json").unlink()


def test_lone_surrogates_are_no_text(bpe: FileText) -> None:
    assert ByteText().encode("a\ud800", whole=True) == [97, 63]
    assert bpe.encode("a\ud800", whole=True) == bpe.encode("a?", whole=True)


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UsageError, match=r"not a Hugging Face tokenizer\.json"):
        load_text(str(tmp_path / "tokenizer.json"))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(st.text("ab", max_size=3), max_size=10),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_text_is_cut_at_the_first_stop_however_it_comes(parts: list[str], stops: list[str]) -> None:
    finder = StopStrings(stops)
    given_out = ""
    ended = None
    for number, part in enumerate(parts):
        given_out += finder.add(part)
        if finder.found and ended is None:
            ended = number
    found = finder.found
    given_out += finder.finish()
    # read part by part, the first part with a stop in it ends the text
    seen = ""
    for part in parts:
        seen += part
        places = [seen.find(stop) for stop in stops if stop in seen]
        if places:
            assert found and given_out == seen[: min(places)]
            return
    assert not found and given_out == "".join(parts)
