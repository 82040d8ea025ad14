"""A checkpoint written as a Hugging Face folder: `config.json`, safetensors files, their index, and
the tokenizer that the checkpoint holds.

One process, no devices. What goes into which file is decided from the model's shape alone, so each
file's header is written first and the weights pass through memory layer by layer.
"""

import json
import os
import shutil
import struct
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load

from parctl.errors import ParctlError, UsageError
from parctl.recipes.frozen import from_json
from parctl.recipes.spec import ModelSpec
from parctl.runtime.checkpoint.checkpoints import TOKENIZER, read_progress
from parctl.runtime.checkpoint.directory import NAME, find_checkpoints, wrong_content, wrong_size
from parctl.runtime.data.check import end_mark
from parctl.runtime.huggingface.config import config_of
from parctl.runtime.huggingface.files import INDEX, NUM_BYTES, SINGLE
from parctl.runtime.huggingface.names import Weight, weights

FILE_BYTES = 5_000_000_000  # of one file, as Hugging Face cuts them
# what the command calls them: torch's dtype, the format's name
DTYPES = {"fp32": (torch.float32, "F32"), "bf16": (torch.bfloat16, "BF16")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written."""

    checkpoint: Path
    architecture: str
    num_tensors: int
    num_bytes: int
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One tensor there, made of one of ours or of several parts."""

    key: str
    shape: tuple[int, ...]
    parts: tuple[Weight, ...]
    expert: int | None  # which of a stack


def export(checkpoint: Path, folder: Path, *, dtype: str, file_bytes: int = FILE_BYTES) -> Exported:
    """Write the newest checkpoint in a directory, or the one that is named, to a new folder."""
    if dtype not in DTYPES:
        raise UsageError(f"no dtype {dtype}", hint=f"one of {', '.join(DTYPES)}")
    checkpoint = choose(checkpoint)
    model = from_json(ModelSpec, read_progress(checkpoint).model)
    torch_dtype, name = DTYPES[dtype]
    config = config_of(model, dtype=str(torch_dtype).removeprefix("torch."))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there already", hint="name a new folder")
    problem = wrong_size(checkpoint) or wrong_content(checkpoint, share=0, of=1)
    if problem:
        raise ParctlError(f"{checkpoint} is damaged: {problem}", hint="name another one")
    files = plan_files(list(entries(model)), NUM_BYTES[name], file_bytes)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        config |= copy_tokenizer(checkpoint, partial)
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        for file_name, content in files.items():
            write_file(partial / file_name, content, checkpoint, dtype)
        num_bytes = sum(prod(entry.shape) for entry in entries(model)) * NUM_BYTES[name]
        if len(files) > 1:
            write_index(partial / INDEX, files, num_bytes)
        if folder.is_dir():
            folder.rmdir()
        os.rename(partial, folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UsageError(
            f"cannot write {folder}: {error.strerror}", hint="name a folder that can be written"
        ) from error
    return Exported(
        checkpoint=checkpoint,
        architecture=config["architectures"][0],
        num_tensors=sum(map(len, files.values())),
        num_bytes=num_bytes,
        files=tuple(files),
    )


def copy_tokenizer(checkpoint: Path, folder: Path) -> dict[str, int]:
    """Copy the tokenizer that a checkpoint holds. Returns what `config.json` says of it."""
    source = checkpoint / TOKENIZER
    if not source.is_file():
        return {}
    shutil.copyfile(source, folder / TOKENIZER)
    mark = end_mark(source)
    about = {"tokenizer_class": "PreTrainedTokenizerFast"} | (
        {"eos_token": mark[0]} if mark else {}
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=2) + "\n")
    return {"eos_token_id": mark[1]} if mark else {}


def choose(path: Path) -> Path:
    """Return `path` if it is a checkpoint, else the newest whole one in it."""
    if NAME.fullmatch(path.name):
        return path
    if not path.is_dir():
        raise UsageError(
            f"{path}: no run and no folder has this name",
            hint="`parctl list` shows the runs; or name checkpoint.dir or one step in it",
        )
    found = find_checkpoints(path)
    if not found.whole:
        raise UsageError(
            f"{path} holds no whole checkpoint", hint="name checkpoint.dir or one step in it"
        )
    return found.whole[-1]


def entries(model: ModelSpec) -> Iterator[Entry]:
    """Yield the tensors to write, layer by layer."""
    by_key: dict[str, list[Weight]] = {}
    for weight in weights(model):
        for key in weight.keys:
            by_key.setdefault(key, []).append(weight)
    for key, parts in by_key.items():
        stacked = len(parts[0].shape) == 3
        yield Entry(
            key=key,
            shape=parts[0].shape_there,
            parts=tuple(parts),
            expert=parts[0].keys.index(key) if stacked else None,
        )


def plan_files(
    content: Sequence[Entry], element: int, file_bytes: int
) -> dict[str, Sequence[Entry]]:
    """Deal the tensors out to files of at most `file_bytes`, in order."""
    files: list[list[Entry]] = [[]]
    used = 0
    for entry in content:
        size = prod(entry.shape) * element
        if files[-1] and used + size > file_bytes:
            files.append([])
            used = 0
        files[-1].append(entry)
        used += size
    if len(files) == 1:
        return {SINGLE: files[0]}
    return {
        f"model-{index:05d}-of-{len(files):05d}.safetensors": entries_
        for index, entries_ in enumerate(files, start=1)
    }


def write_file(path: Path, content: Sequence[Entry], checkpoint: Path, dtype: str) -> None:
    """Write a header, then the tensors in its order."""
    torch_dtype, name = DTYPES[dtype]
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in content:
        begin, end = end, end + prod(entry.shape) * NUM_BYTES[name]
        header[entry.key] = {
            "dtype": name,
            "shape": list(entry.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, layer in groupby(content, key=lambda entry: layer_of(entry.parts[0].name)):
            wanted = list(layer)
            ours = read(checkpoint, (part for entry in wanted for part in entry.parts), torch_dtype)
            for entry in wanted:
                file.write(build(entry, ours).view(torch.uint8).numpy().data)


def layer_of(name: str) -> str:
    """What is read at once.

    >>> layer_of("blocks.3.attention.wq.weight"), layer_of("head.weight")
    ('blocks.3', 'head')
    """
    words = name.split(".")
    return ".".join(words[:2]) if words[0] == "blocks" else words[0]


def read(checkpoint: Path, wanted: Iterable[Weight], dtype: torch.dtype) -> Mapping[str, Tensor]:
    """Return tensors of a checkpoint by our names, whole and on the CPU."""
    state = {f"model.{weight.name}": torch.empty(weight.shape, dtype=dtype) for weight in wanted}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process is what we want
        load(state, storage_reader=FileSystemReader(checkpoint), no_dist=True)
    return {name.removeprefix("model."): tensor for name, tensor in state.items()}


def build(entry: Entry, ours: Mapping[str, Tensor]) -> Tensor:
    """Return a tensor as it lies there."""
    parts = []
    for weight in entry.parts:
        tensor = ours[weight.name]
        if entry.expert is not None:
            tensor = tensor[entry.expert]
        if weight.pairs is not None:
            rows = [weight.pairs.row_there(row) for row in range(tensor.shape[0])]
            tensor = torch.empty_like(tensor).index_copy_(0, torch.tensor(rows), tensor)
        parts.append(tensor)
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    if entry.parts[0].transposed and whole.dim() == 2:
        whole = whole.T
    assert tuple(whole.shape) == entry.shape, (entry.key, whole.shape)
    return whole.contiguous()


def write_index(path: Path, files: Mapping[str, Sequence[Entry]], num_bytes: int) -> None:
    content = {
        "metadata": {"total_size": num_bytes},
        "weight_map": {entry.key: name for name, entries_ in files.items() for entry in entries_},
    }
    path.write_text(json.dumps(content, indent=2) + "\n")
