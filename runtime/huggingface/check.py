"""Whether a Hugging Face folder holds a model's weights, asked before any process starts.

Names, shapes and dtypes are compared from the files' headers. Imports no torch.
"""

from collections.abc import Mapping
from pathlib import Path

from parctl.errors import UsageError
from parctl.recipes.spec import ModelSpec
from parctl.runtime.huggingface.files import (
    FLOAT8,
    NUM_BYTES,
    SCALES,
    Stored,
    block_size,
    list_tensors,
    num_blocks,
)
from parctl.runtime.huggingface.names import weights

BASES = ("model.", "transformer.")  # prefixes that a folder of the bare model leaves out


def refuse_bad_weights(folder: Path, model: ModelSpec) -> None:
    """Raise UsageError that names the file and the key which do not fit."""
    if not folder.is_dir():
        raise UsageError(
            f"checkpoint.init_from = {folder}: no such folder",
            hint="name a folder with a Hugging Face model in safetensors files",
        )
    stored = list_tensors(folder)
    for weight in weights(model):
        for key in weight.keys:
            found = find_key(stored, key)
            if found not in stored:
                raise UsageError(
                    f"{folder} has no tensor {key}, which {model.name} needs",
                    hint=f"is the download complete, and its config.json that of {model.name}?",
                )
            tensor = stored[found]
            if tensor.shape != weight.shape_there:
                raise UsageError(
                    f"{tensor.path}: {found} has shape {list(tensor.shape)}, "
                    f"{model.name} needs {list(weight.shape_there)}",
                    hint="`model: {hf: DIR}` takes the shape from the folder itself",
                )
            if tensor.dtype == FLOAT8:
                refuse_bad_scales(folder, stored, found)
            elif tensor.dtype not in NUM_BYTES:
                raise UsageError(
                    f"{tensor.path}: {found} is stored as {tensor.dtype}, "
                    f"expected one of {', '.join(NUM_BYTES)}, or {FLOAT8} with scales",
                    hint="convert weights of other kinds to BF16 first",
                )


def refuse_bad_scales(folder: Path, stored: Mapping[str, Stored], key: str) -> None:
    """Raise for float8 weights whose scales are not those of their blocks."""
    tensor, scales = stored[key], stored.get(key + SCALES)
    block = block_size(folder)
    if len(tensor.shape) != 2:
        raise UsageError(
            f"{tensor.path}: {key} is stored as {FLOAT8}, but is no matrix",
            hint="convert it to BF16 first",
        )
    expected = num_blocks(tensor.shape, block)
    if scales is None or scales.shape != expected or scales.dtype != "F32":
        found = "none" if scales is None else f"{list(scales.shape)} of {scales.dtype}"
        raise UsageError(
            f"{tensor.path}: {key} is stored as {FLOAT8}, so {key}{SCALES} must be "
            f"{list(expected)} of F32, one for each {block[0]} x {block[1]}; found {found}",
            hint="convert weights that are scaled otherwise to BF16 first",
        )


def find_key(stored: Mapping[str, Stored], key: str) -> str:
    """Return `key` as it is in the folder: the bare model's has no prefix."""
    if key not in stored:
        for base in BASES:
            if key.startswith(base) and key.removeprefix(base) in stored:
                return key.removeprefix(base)
    return key
