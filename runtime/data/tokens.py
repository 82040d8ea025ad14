"""Token streams: all documents end to end, on disk, read by position.

Text is tokenised once per node into a file of the run directory, which every rank then maps into
memory; a tokenised file of the user's (`.bin`) is mapped as it is: little-endian uint16 ids, or
uint32 when the vocabulary has more than 65,536.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from parctl.errors import UsageError
from parctl.recipes.spec import DataSpec
from parctl.runtime.data.check import common_format
from parctl.runtime.data.documents import list_files, read_documents
from parctl.runtime.data.sample import foreign_id, refuse_odd_size
from parctl.runtime.data.tokenizer import load_tokenizer


def id_type(num_ids: int) -> np.dtype[np.unsignedinteger]:
    return np.dtype("<u2" if num_ids <= 1 << 16 else "<u4")


class TokenStream:
    """Tokens `begin` to `end` of several mapped files laid end to end."""

    def __init__(
        self,
        paths: Sequence[Path],
        parts: Sequence[NDArray[np.unsignedinteger]],
        *,
        vocab_size: int,
        begin: int = 0,
        end: int | None = None,
    ) -> None:
        self._paths, self._parts, self._vocab_size = paths, parts, vocab_size
        self._edges = np.cumsum([0, *(len(part) for part in parts)])
        self._begin = begin
        self._end = int(self._edges[-1]) if end is None else end

    def __len__(self) -> int:
        return self._end - self._begin

    def split(self, position: int) -> "tuple[TokenStream, TokenStream]":
        """Cut in two. The parts share the mapped files."""
        middle = self._begin + position
        return tuple(  # type: ignore[return-value]
            TokenStream(self._paths, self._parts, vocab_size=self._vocab_size, begin=begin, end=end)
            for begin, end in ((self._begin, middle), (middle, self._end))
        )

    def read(self, start: int, count: int) -> NDArray[np.int64]:
        """Return `count` tokens from position `start` on."""
        position, pieces = self._begin + start, []
        while count > 0:
            index = int(np.searchsorted(self._edges, position, side="right")) - 1
            offset = position - int(self._edges[index])
            piece = self._parts[index][offset : offset + count].astype(np.int64)
            largest = int(piece.max())
            if largest >= self._vocab_size:
                where = offset + int(piece.argmax())
                raise foreign_id(self._paths[index], where, largest, self._vocab_size)
            pieces.append(piece)
            position, count = position + len(piece), count - len(piece)
        return np.concatenate(pieces)


def open_stream(
    sources: Sequence[str],
    spec: DataSpec,
    *,
    vocab_size: int,
    directory: Path,
    leader: bool,
    barrier: Callable[[], None],
) -> TokenStream:
    """Open `sources` as one stream.

    Every rank calls it; the leader of each node tokenises, the others wait for it.
    """
    files = list_files(sources)
    if common_format(files, spec) == "bin":
        return map_files(files, id_type(vocab_size), vocab_size)
    tokenizer = load_tokenizer(spec.tokenizer, vocab_size=vocab_size)
    cache = directory / f"tokens-{fingerprint(files, spec)}.bin"
    if leader and not cache.exists():
        directory.mkdir(parents=True, exist_ok=True)
        partial = cache.with_suffix(f".partial-{os.getpid()}")
        with partial.open("wb") as out:
            for path in files:
                for document in read_documents(path, spec):
                    ids = tokenizer.encode(document)
                    out.write(ids.astype(id_type(tokenizer.num_ids)).data)
        if partial.stat().st_size == 0:
            partial.unlink()
            raise UsageError(f"data: {', '.join(sources)} holds no text", hint="check the files")
        os.replace(partial, cache)
    barrier()
    return map_files([cache], id_type(tokenizer.num_ids), vocab_size)


def map_files(
    files: Sequence[Path], dtype: np.dtype[np.unsignedinteger], vocab_size: int
) -> TokenStream:
    for path in files:
        refuse_odd_size(path, path.stat().st_size, dtype.itemsize, vocab_size)
    parts = [np.memmap(path, dtype=dtype, mode="r") for path in files]
    return TokenStream(files, parts, vocab_size=vocab_size)


def fingerprint(files: Sequence[Path], spec: DataSpec) -> str:
    """Name the tokens of these files: changed files or another tokenizer give another name."""
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    content = json.dumps([stats, spec.format, spec.text_key, spec.tokenizer])
    return hashlib.sha256(content.encode()).hexdigest()[:16]
