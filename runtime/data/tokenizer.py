"""Tokenizers: text to token ids.

`byte` needs nothing; any Hugging Face `tokenizer.json` needs the package `tokenizers`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from parctl.runtime.data.check import (
    BYTE_END,
    END_OF_TEXT,
    find_tokenizer,
    not_a_tokenizer,
    refuse_small_vocabulary,
)


class Tokenizer(Protocol):
    @property
    def num_ids(self) -> int:
        """One more than the largest id."""

    def encode(self, text: str) -> NDArray[np.integer[Any]]:
        """Return the ids of one document, with the mark that ends it when the tokenizer has one."""


class ByteTokenizer:
    """One id per UTF-8 byte.

    Id 0 ends a document: text files that hold a NUL byte are refused as binary.
    """

    num_ids = 256

    def encode(self, text: str) -> NDArray[np.uint8]:
        return np.frombuffer(text.encode() + bytes([BYTE_END]), dtype=np.uint8)


class FileTokenizer:
    """A Hugging Face `tokenizer.json`."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer as HuggingFaceTokenizer

        try:
            self._tokenizer: Any = HuggingFaceTokenizer.from_file(str(path))
        except Exception as error:  # the package raises bare Exception
            raise not_a_tokenizer(path, error) from error
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        self.num_ids = max(vocabulary.values()) + 1
        self._end = [vocabulary[mark] for mark in END_OF_TEXT if mark in vocabulary][:1]

    def encode(self, text: str) -> NDArray[np.int64]:
        ids: Sequence[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return np.array([*ids, *self._end], dtype=np.int64)


def load_tokenizer(name: str, *, vocab_size: int) -> Tokenizer:
    """Return the tokenizer `name`. Its ids must be in the model's vocabulary."""
    tokenizer: Tokenizer
    tokenizer = ByteTokenizer() if name == "byte" else FileTokenizer(find_tokenizer(name))
    refuse_small_vocabulary(name, tokenizer.num_ids, vocab_size)
    return tokenizer
