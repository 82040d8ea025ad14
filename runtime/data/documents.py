"""Documents: the files that a recipe names, read as texts. Faults name the file and the line."""

import glob
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from parctl.errors import UsageError
from parctl.recipes.corpus import SCHEME, corpus_files
from parctl.recipes.spec import DataSpec
from parctl.runtime.data.parquet import read_texts


def list_files(sources: Sequence[str]) -> list[Path]:
    """Resolve paths, globs and shipped corpora, in the order given.

    Relative paths start at the working directory.
    """
    files: list[Path] = []
    for source in sources:
        if source.startswith(SCHEME):
            found = corpus_files(source)
        elif glob.has_magic(source):
            found = sorted(Path(path) for path in glob.glob(source, recursive=True))
        else:
            found = [Path(source)]
        if not found:
            raise UsageError(
                f"data: {source} matches no file", hint="check the path; `**` crosses directories"
            )
        files += found
    for path in files:
        if not path.is_file():
            what = "is a directory" if path.is_dir() else "no such file"
            raise UsageError(
                f"data: {path}: {what}",
                hint=f"name the files, as in `{path}/*.txt`" if path.is_dir() else "check the path",
            )
        if path.stat().st_size == 0:
            raise UsageError(f"data: {path}: is empty", hint="remove it from the recipe")
    return files


def file_format(path: Path, spec: DataSpec) -> str:
    """Return text, jsonl, parquet or bin: as the recipe says, else by the file's suffix."""
    if spec.format != "auto":
        return spec.format
    formats = {".jsonl": "jsonl", ".parquet": "parquet", ".bin": "bin"}
    return formats.get(path.suffix, "text")


def read_documents(path: Path, spec: DataSpec) -> Iterator[str]:
    """Yield the documents of a file: each row of jsonl or parquet, or the whole of a text file."""
    if file_format(path, spec) == "parquet":
        yield from read_texts(path, spec.text_key)
    elif file_format(path, spec) == "jsonl":
        yield from read_rows(path, spec.text_key)
    else:
        text = "".join(line for _, line in read_lines(path))
        if text.strip():
            yield text


def read_lines(path: Path, *, limit: int = -1) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text with their numbers, up to one longer than `limit` bytes."""
    with path.open("rb") as file:
        for number, raw in enumerate(iter(lambda: file.readline(limit), b""), start=1):
            if b"\0" in raw:
                raise UsageError(
                    f"{path}:{number}: a NUL byte, so this is a binary file and not text",
                    hint="tokenised files end in .bin, or set data.format: bin",
                )
            if len(raw) == limit and not raw.endswith(b"\n"):
                return  # cut, perhaps inside a character
            try:
                # programs on Windows begin a file with a byte order mark, which is no text
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UsageError(
                    f"{path}:{number}: byte {error.start + 1} of the line is not UTF-8",
                    hint="convert the file: `iconv -t UTF-8`",
                ) from error


def read_rows(path: Path, text_key: str) -> Iterator[str]:
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UsageError(
                f"{path}:{number}:{error.colno}: not JSON: {error.msg}",
                hint="a jsonl file holds one JSON object per line",
            ) from error
        except (ValueError, RecursionError) as error:  # a number or a nest that Python refuses
            raise UsageError(
                f"{path}:{number}: not JSON that can be read: {error}",
                hint="a jsonl file holds one JSON object per line",
            ) from error
        text = row.get(text_key) if isinstance(row, dict) else None
        if not isinstance(text, str):
            keys = ", ".join(row) if isinstance(row, dict) else f"a {type(row).__name__}"
            raise UsageError(
                f"{path}:{number}: no text under the key `{text_key}`, found: {keys}",
                hint="set data.text_key to the key that holds the text",
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"{path}:{number}: {text[error.start]!a} is half of a surrogate pair, no character",
                hint="remove it, or the row",
            ) from error
        yield text
