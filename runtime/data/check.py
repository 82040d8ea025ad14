"""What can be said of the data before any process starts. Imports neither torch nor numpy.

Files that are not there or hold no text, a tokenizer and tokens that the model's vocabulary cannot
hold are refused here; of large files a sample is read (`runtime.data.sample`).
"""

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from parctl.errors import UsageError
from parctl.recipes.corpus import SCHEME, STRIPES
from parctl.recipes.spec import DataSpec, ModelSpec, VisionSpec
from parctl.runtime.data.documents import file_format, list_files
from parctl.runtime.data.sample import refuse_bad_sample

BYTE_END = 0  # the byte tokenizer's: no text holds a NUL byte
END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")


def refuse_bad_data(data: DataSpec, model: ModelSpec) -> None:
    """Raise UsageError for data that no rank could open."""
    if model.vision is not None:
        return refuse_bad_images(data, model.vision)
    if STRIPES in data.train + data.validation:
        raise UsageError(
            f"data: {STRIPES} are images, and {model.name} reads text",
            hint="name text, or a model of the family vit",
        )
    files = list_files(data.train)
    formats = {common_format(files, data)}
    if data.document_mask:
        end_token = find_end_token(data, *formats)
        if end_token >= model.vocab_size:
            raise UsageError(
                f"data.end_token = {end_token}, but model.vocab_size is {model.vocab_size}",
                hint=f"ids are 0 to {model.vocab_size - 1}",
            )
    if data.validation:
        held_out = list_files(data.validation)
        formats.add(common_format(held_out, data))
        files += held_out
    for path in files:
        refuse_bad_sample(path, data, model.vocab_size)
    if data.tokenizer != "byte" and formats != {"bin"}:
        path = find_tokenizer(data.tokenizer)
        refuse_small_vocabulary(data.tokenizer, num_ids(path), model.vocab_size)


def refuse_bad_images(data: DataSpec, vision: VisionSpec) -> None:
    """Raise UsageError for files that are not records of such images."""
    record = 1 + vision.num_channels * vision.image_size**2
    for sources in (data.train, data.validation):
        if sources == (STRIPES,):
            continue
        if any(source.startswith(SCHEME) for source in sources):
            raise UsageError(
                f"data: {', '.join(sources)}: a vit reads images, and not beside other data",
                hint=f"name files of images, or only {STRIPES}",
            )
        for path in list_files(sources):
            size = path.stat().st_size
            if size % record:
                raise UsageError(
                    f"{path}: {size} bytes is no multiple of {record} = 1 + "
                    f"{vision.num_channels} x {vision.image_size} x {vision.image_size}",
                    hint="a record is one byte of class and then the pixels, as in CIFAR-10's",
                )


def find_end_token(data: DataSpec, form: str) -> int:
    """Return the id that ends a document in data of this common format.

    UsageError when there is none, so that documents cannot be kept apart.
    """
    if data.end_token is not None:
        return data.end_token
    if form == "bin":
        raise UsageError(
            "data.document_mask needs to know which id ends a document of a tokenised file",
            hint="set data.end_token to that id",
        )
    if data.tokenizer == "byte":
        return BYTE_END
    mark = end_mark(find_tokenizer(data.tokenizer))
    if mark is None:
        raise UsageError(
            f"data.document_mask: {data.tokenizer} has none of the marks that end a document: "
            f"{', '.join(END_OF_TEXT)}",
            hint="set data.document_mask: false, or use another tokenizer",
        )
    return mark[1]


def end_mark(tokenizer: Path) -> tuple[str, int] | None:
    """Return what ends a document in a tokenizer.json, and its id."""
    ids = token_ids(tokenizer)
    return next(((mark, ids[mark]) for mark in END_OF_TEXT if mark in ids), None)


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
    return max(token_ids(path).values()) + 1


def token_ids(path: Path) -> dict[str, int]:
    """Return every token of a Hugging Face tokenizer.json with its id."""
    try:
        content: Any = json.loads(path.read_bytes())
        vocabulary = content["model"]["vocab"]  # token to id, or a list of [token, score]
        if isinstance(vocabulary, list):
            vocabulary = {token: index for index, (token, _) in enumerate(vocabulary)}
        added = {token["content"]: token["id"] for token in content.get("added_tokens") or ()}
        ids = {str(token): int(index) for token, index in {**vocabulary, **added}.items()}
        if not ids:
            raise ValueError("it holds no token")
        return ids
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
