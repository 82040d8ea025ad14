"""Folders of safetensors files, read by their headers. Needs neither torch nor the package.

A file is eight bytes with the length of a JSON header, the header, then the tensors' bytes. The
header says of every tensor its dtype, its shape and where its bytes lie, so what a folder holds is
known without reading a weight (format: https://huggingface.co/docs/safetensors). Larger models are
cut into several files, and `model.safetensors.index.json` says which key is in which.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from parctl.errors import UsageError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
NUM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # of one element, of the dtypes we read
FLOAT8 = "F8_E4M3"  # read too, where its scales lie beside it
SCALES = "_scale_inv"  # after the key: a factor for every block of the tensor
BLOCK = (128, 128)  # rows and columns, unless config.json says otherwise
MAX_HEADER = 100_000_000  # bytes, as the format's own reader has it


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Where a tensor lies."""

    path: Path
    dtype: str  # as the format spells it, for example BF16
    shape: tuple[int, ...]
    begin: int  # of its bytes in the file


def list_tensors(folder: Path) -> dict[str, Stored]:
    """Return every tensor of a folder by its key. Raises UsageError that names the faulty file."""
    stored: dict[str, Stored] = {}
    index = folder / INDEX
    if not index.is_file():
        if not (folder / SINGLE).is_file():
            other = next(iter(sorted(folder.glob("*.bin"))), None)
            raise UsageError(
                f"{folder} holds neither {SINGLE} nor {INDEX}"
                f"{'' if other is None else f'; {other.name} is not read'}",
                hint="is the download complete? name a folder with a Hugging Face model in "
                "safetensors files; `checkpoint.init_from: random` draws weights",
            )
        return read_header(folder / SINGLE)
    for name in dict.fromkeys(read_index(index).values()):
        stored |= read_header(folder / name)
    missing = [key for key in read_index(index) if key not in stored]
    if missing:
        raise UsageError(
            f"{index}: {missing[0]} is not in {read_index(index)[missing[0]]}",
            hint="is the download complete?",
        )
    return stored


def block_size(folder: Path) -> tuple[int, int]:
    """Return rows and columns of a block that shares one scale (DeepSeek-V3, 2412.19437, 3.3.2)."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        rows, columns = config["quantization_config"]["weight_block_size"]
        return int(rows), int(columns)
    except (OSError, ValueError, KeyError, TypeError):
        return BLOCK


def num_blocks(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, ...]:
    """
    >>> num_blocks((256, 300), (128, 128))
    (2, 3)
    """
    return tuple(-(-size // step) for size, step in zip(shape, block, strict=True))


def read_index(path: Path) -> Mapping[str, str]:
    """Return the file name of every key."""
    try:
        files = json.loads(path.read_bytes())["weight_map"]
        if not all(isinstance(name, str) and "/" not in name for name in files.values()):
            raise ValueError("weight_map names no files")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path}: not an index of safetensors files: {error}", hint="is the download complete?"
        ) from error
    result: Mapping[str, str] = files
    return result


def read_header(path: Path) -> dict[str, Stored]:
    """Return the tensors of one file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(MAX_HEADER, size - 8):
                raise ValueError(f"its header claims {length} bytes")
            header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        return {key: read_entry(path, entry, 8 + length, size) for key, entry in header.items()}
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file", hint="is the download complete?") from error
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path}: not a whole safetensors file: {error}", hint="is the download complete?"
        ) from error


def read_entry(path: Path, entry: Mapping[str, Any], start: int, size: int) -> Stored:
    """Check one entry of a header. `start` is where the tensors begin, `size` the file's."""
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    num_bytes = (NUM_BYTES | {FLOAT8: 1}).get(entry["dtype"])
    if start + end > size or begin < 0:
        raise ValueError(f"{start + end} bytes expected, found {size}")
    if num_bytes is not None and end - begin != num_bytes * prod(shape):
        raise ValueError(f"{end - begin} bytes do not hold {list(shape)} of {entry['dtype']}")
    return Stored(path=path, dtype=entry["dtype"], shape=shape, begin=start + begin)
