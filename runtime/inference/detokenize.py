"""Between text and tokens for a running conversation: encode a prompt, decode token by token.

A character may be spread over several tokens, and what a token reads as may depend on the one
before it. So text is given out only as far as later tokens cannot change it::

    tokens     e2    82    ac   20   ...
    given      ""    ""    EURO " "

Nothing here imports torch: the endpoint's process has none.
"""

import codecs
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from parctl.errors import UsageError

BYTE_END = 0
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # how other vocabularies spell bytes
UNFINISHED = "\N{REPLACEMENT CHARACTER}"
MOST_PENDING = 8  # tokens: a character has 4 bytes, so the first of more begin none


class Detokenizer(Protocol):
    """The text of one sample."""

    def add(self, token: int) -> str:
        """Return the text that is certain now and was not before."""

    def finish(self) -> str:
        """Return what is left; unfinished characters are written as U+FFFD."""


class TextTokenizer(Protocol):
    @property
    def num_ids(self) -> int:
        """One more than the largest token."""

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """Which tokens end a text."""

    def encode(self, text: str, *, whole: bool) -> list[int]:
        """`whole`: with the marks that begin a text, which a chat template writes itself."""

    def detokenizer(self) -> Detokenizer:
        """Return a new one, for one sample."""

    def piece(self, token: int) -> bytes:
        """Return what one token stands for."""


class ByteText:
    """One token per UTF-8 byte; token 0 ends a text. Tokens beyond bytes stand for nothing."""

    num_ids = 256
    stop_tokens = (BYTE_END,)

    def encode(self, text: str, *, whole: bool) -> list[int]:
        return list(text.encode("utf-8", "replace"))

    def detokenizer(self) -> Detokenizer:
        return ByteDetokenizer()

    def piece(self, token: int) -> bytes:
        return bytes([token]) if token < self.num_ids else b""


class ByteDetokenizer:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        return self._decoder.decode(bytes([token]) if token < ByteText.num_ids else b"")

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class FileText:
    """A Hugging Face `tokenizer.json`; what ends a text is in the files beside it."""

    def __init__(self, path: Path) -> None:
        if find_spec("tokenizers") is None:
            raise UsageError(
                f"{path} needs the package tokenizers, which is not installed",
                hint="`pip install 'parctl[torch]'`",
            )
        from tokenizers import Tokenizer

        try:
            self._tokenizer: Any = Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises bare Exception
            raise UsageError(
                f"inference.tokenizer = {path}: not a Hugging Face tokenizer.json: {error}",
                hint="give `byte` or the path of a tokenizer.json",
            ) from error
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        self.num_ids = max(vocabulary.values()) + 1
        self.stop_tokens = stop_tokens(path.parent, vocabulary)

    def encode(self, text: str, *, whole: bool) -> list[int]:
        clean = text.encode("utf-8", "replace").decode()  # lone surrogates are no text
        ids: list[int] = self._tokenizer.encode(clean, add_special_tokens=whole).ids
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def detokenizer(self) -> Detokenizer:
        return FileDetokenizer(self)

    def name(self, token: int) -> str:
        """Return how the vocabulary spells a token."""
        return str(self._tokenizer.id_to_token(token) or "")

    def piece(self, token: int) -> bytes:
        return self.decode([token]).encode() or self.name(token).encode()

    def raw(self, token: int) -> bytes:
        """Return the bytes of a token that is part of a character, as vocabularies spell them."""
        text = self.decode([token])
        if UNFINISHED not in text:
            return text.encode()
        name = self.name(token)
        if found := BYTE_TOKEN.fullmatch(name):
            return bytes([int(found[1], 16)])
        table = spelled_bytes()
        return bytes(table[letter] for letter in name if letter in table)


class FileDetokenizer:
    """Decodes a window of the last tokens twice, without and with the new ones."""

    def __init__(self, tokenizer: FileText) -> None:
        self._tokenizer = tokenizer
        self._given: list[int] = []  # whose text was given out last: the new ones' context
        self._pending: list[int] = []

    def add(self, token: int) -> str:
        self._pending.append(token)
        if len(self._pending) <= MOST_PENDING:
            return self._take(force=False)
        begun = self._num_begun()
        cut = len(self._pending) - begun
        self._pending, kept = self._pending[:cut], self._pending[cut:]
        text = self._take(force=True)
        self._pending += kept
        return text

    def finish(self) -> str:
        return self._take(force=True)

    def _num_begun(self) -> int:
        """Return how many of the last pending tokens hold a character that may yet be finished."""
        pieces = [self._tokenizer.raw(token) for token in self._pending]
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(b"".join(pieces))
        left = len(decoder.getstate()[0])
        begun = 0
        while left > 0:
            begun += 1
            left -= len(pieces[-begun])
        return begun

    def _take(self, *, force: bool) -> str:
        if not self._pending:
            return ""
        before = self._tokenizer.decode(self._given)
        after = self._tokenizer.decode(self._given + self._pending)
        if after.endswith(UNFINISHED) and not force:
            return ""
        if len(after) > len(before):
            self._given, self._pending = self._pending, []
        elif force:
            self._given, self._pending = self._given + self._pending, []
        return after[len(before) :]


@cache
def spelled_bytes() -> Mapping[str, int]:
    """Return which byte each letter of a byte-level vocabulary stands for, as GPT-2's has it.

    Bytes that print are spelled by themselves, the others by the letters from U+0100 on.
    """
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }


def stop_tokens(folder: Path, vocabulary: dict[str, int]) -> tuple[int, ...]:
    """Read which tokens end a text: `eos_token_id`, or the token that `eos_token` names."""
    found: list[int] = []
    for name in ("generation_config.json", "config.json"):
        value = read_json(folder / name).get("eos_token_id")
        found += value if isinstance(value, list) else [value] if isinstance(value, int) else []
        if found:
            break
    token = read_json(folder / "tokenizer_config.json").get("eos_token")
    text = token.get("content") if isinstance(token, dict) else token
    if isinstance(text, str) and text in vocabulary:
        found.append(vocabulary[text])
    return tuple(dict.fromkeys(found))


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object; an empty one where there is no such file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        return {}
    except ValueError as error:
        raise UsageError(f"{path}: no JSON: {error}", hint="is the download complete?") from error
    return content if isinstance(content, dict) else {}


def load_text(tokenizer: str) -> TextTokenizer:
    """Return the tokenizer `byte`, or that of a file."""
    return ByteText() if tokenizer == "byte" else FileText(Path(tokenizer))


class StopStrings:
    """Finds the first of several texts in a text that comes in parts, and holds back what may
    become one.

    >>> stops = StopStrings(["END"])
    >>> stops.add("the E"), stops.add("N"), stops.add("D of it"), stops.found
    ('the ', '', '', True)
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.found = False

    def add(self, text: str) -> str:
        """Return what is before a stop and can no longer become one."""
        if self.found or not self._stops:
            return "" if self.found else text
        self._held += text
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            self.found = True
            before, self._held = self._held[: min(places)], ""
            return before
        keep = max(self._overlap(stop) for stop in self._stops)
        cut = len(self._held) - keep
        before, self._held = self._held[:cut], self._held[cut:]
        return before

    def finish(self) -> str:
        """Return what was held back for a stop that did not come."""
        held, self._held = self._held, ""
        return held

    def _overlap(self, stop: str) -> int:
        """How many last characters held are the first ones of a stop."""
        most = min(len(stop) - 1, len(self._held))
        return next((n for n in range(most, 0, -1) if self._held.endswith(stop[:n])), 0)
