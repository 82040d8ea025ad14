"""Tokenizers: text to token ids.

`byte` needs nothing; any Hugging Face `tokenizer.json` needs the package `tokenizers`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from parctl.errors import UsageError

END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")


class Tokenizer(Protocol):
    @property
    def num_ids(self) -> int:
        """One more than the largest id."""

    def encode(self, text: str) -> NDArray[np.int64]:
        """Return the ids of one document, with the mark that ends it when the tokenizer has one."""


class ByteTokenizer:
    """One id per UTF-8 byte.

    Id 0 ends a document: text files that hold a NUL byte are refused as binary.
    """

    num_ids = 256

    def encode(self, text: str) -> NDArray[np.int64]:
        return np.frombuffer(text.encode() + b"\0", dtype=np.uint8).astype(np.int64)


class FileTokenizer:
    """A Hugging Face `tokenizer.json`."""

    def __init__(self, path: Path) -> None:
        self._tokenizer = open_tokenizer(path)
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        self.num_ids = max(vocabulary.values()) + 1
        self._end = [vocabulary[mark] for mark in END_OF_TEXT if mark in vocabulary][:1]

    def encode(self, text: str) -> NDArray[np.int64]:
        ids: Sequence[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return np.array([*ids, *self._end], dtype=np.int64)


def open_tokenizer(path: Path) -> Any:
    try:
        from tokenizers import Tokenizer as HuggingFaceTokenizer
    except ModuleNotFoundError as error:
        raise UsageError(
            f"data.tokenizer = {path} needs the package tokenizers, which is not installed",
            hint="`pip install 'parctl[torch]'`, or set data.tokenizer to `byte`",
        ) from error
    if not path.is_file():
        raise UsageError(
            f"data.tokenizer = {path}: no such file",
            hint="give `byte` or the path of a Hugging Face tokenizer.json",
        )
    try:
        return HuggingFaceTokenizer.from_file(str(path))
    except Exception as error:  # the package raises bare Exception
        raise UsageError(
            f"data.tokenizer = {path}: not a Hugging Face tokenizer.json: {error}",
            hint="give `byte` or the path of a Hugging Face tokenizer.json",
        ) from error


def load_tokenizer(name: str, *, vocab_size: int) -> Tokenizer:
    """Return the tokenizer `name`. Its ids must be in the model's vocabulary."""
    tokenizer: Tokenizer = ByteTokenizer() if name == "byte" else FileTokenizer(Path(name))
    if tokenizer.num_ids > vocab_size:
        raise UsageError(
            f"data.tokenizer = {name} makes ids up to {tokenizer.num_ids - 1}, "
            f"but model.vocab_size is {vocab_size}",
            hint=f"set model.vocab_size to {tokenizer.num_ids} or more",
        )
    return tokenizer
