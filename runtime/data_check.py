"""What can be said of the data before any process starts. Imports neither torch nor numpy.

Files that are not there and a tokenizer that the model's vocabulary cannot hold are refused here.
What stands in the files is the ranks' to find.
"""

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from parctl.errors import UsageError
from parctl.recipes.spec import DataSpec, ModelSpec
from parctl.runtime.documents import file_format, list_files


def refuse_bad_data(data: DataSpec, model: ModelSpec) -> None:
    """Raise UsageError for data that no rank could open."""
    formats = {common_format(list_files(data.train), data)}
    if data.validation:
        formats.add(common_format(list_files(data.validation), data))
    if data.tokenizer != "byte" and formats != {"bin"}:
        path = find_tokenizer(data.tokenizer)
        refuse_small_vocabulary(data.tokenizer, num_ids(path), model.vocab_size)


def common_format(files: Sequence[Path], spec: DataSpec) -> str:
    """Return bin when all files are tokenised, text when none is."""
    formats = {"bin" if file_format(path, spec) == "bin" else "text" for path in files}
    if len(formats) > 1:
        raise UsageError(
            f"data: {', '.join(map(str, files))} mixes tokenised files with text",
            hint="tokenise all of them, or name only one kind",
        )
    return formats.pop()


def find_tokenizer(name: str) -> Path:
    if find_spec("tokenizers") is None:
        raise UsageError(
            f"data.tokenizer = {name} needs the package tokenizers, which is not installed",
            hint="`pip install 'parctl[torch]'`, or set data.tokenizer to `byte`",
        )
    path = Path(name)
    if not path.is_file():
        raise UsageError(
            f"data.tokenizer = {name}: no such file",
            hint="give `byte` or the path of a Hugging Face tokenizer.json",
        )
    return path


def num_ids(path: Path) -> int:
    """Return one more than the largest id that a Hugging Face tokenizer.json makes."""
    try:
        content: Any = json.loads(path.read_bytes())
        vocabulary = content["model"]["vocab"]  # token to id, or a list of [token, score]
        ids = range(len(vocabulary)) if isinstance(vocabulary, list) else vocabulary.values()
        added = [token["id"] for token in content.get("added_tokens") or ()]
        return int(max([*ids, *added])) + 1
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise not_a_tokenizer(path, error) from error


def not_a_tokenizer(path: Path, error: Exception) -> UsageError:
    return UsageError(
        f"data.tokenizer = {path}: not a Hugging Face tokenizer.json: {error}",
        hint="give `byte` or the path of a Hugging Face tokenizer.json",
    )


def refuse_small_vocabulary(tokenizer: str, num_ids: int, vocab_size: int) -> None:
    if num_ids > vocab_size:
        raise UsageError(
            f"data.tokenizer = {tokenizer} makes ids up to {num_ids - 1}, "
            f"but model.vocab_size is {vocab_size}",
            hint=f"set model.vocab_size to {num_ids} or more",
        )
