"""Published folders as they are: matrices in float8 with their scales, and a tokenizer."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.runtime.harness import run_ranks, train_to_end
from tests.runtime.plans import LLAMA, plan
from tests.runtime.test_huggingface import MODELS, STILL, trained

from parctl.errors import UsageError
from parctl.runtime.huggingface.check import refuse_bad_weights
from parctl.runtime.huggingface.export import export
from parctl.runtime.huggingface.names import weights


def test_the_tokenizer_goes_along(text: Path, tmp_path: Path) -> None:
    """Saved with the checkpoint, so the file that training read may be gone."""
    path = tmp_path / "own" / "tokenizer.json"
    path.parent.mkdir()
    words = {word: index for index, word in enumerate(["[UNK]", "Line", "times", "is", "more"])}
    write_tokenizer(path, {**words, "</s>": 9})
    made = plan(text, {}, train={"steps": 1, "precision": "fp32"}, checkpoint={"at_end": True})
    data = replace(made.recipe.data, tokenizer=str(path))  # type: ignore[type-var]
    train_to_end(replace(made, recipe=replace(made.recipe, data=data)), tmp_path / "run")
    path.unlink()
    checkpoints = tmp_path / "run" / "checkpoints"
    (ids,) = run_ranks(export_and_encode, 1, tmp_path / "e", checkpoints, tmp_path / "hub")
    assert ids == ([1, 2, 0, 9], 9)
    assert json.loads((tmp_path / "hub" / "config.json").read_text())["eos_token_id"] == 9


def write_tokenizer(path: Path, vocabulary: Mapping[str, int]) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel(dict(vocabulary), unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(path))


def export_and_encode(checkpoints: Path, folder: Path) -> tuple[list[int], int]:
    from transformers import AutoTokenizer

    export(checkpoints, folder, dtype="fp32")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer.encode("Line times fox</s>"), tokenizer.eos_token_id


def test_weights_that_are_quantised_otherwise_are_refused(tmp_path: Path) -> None:
    header = {
        weight.keys[0]: {"dtype": "F4", "shape": weight.shape_there, "data_offsets": [0, 0]}
        for weight in weights(LLAMA)
    }
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(UsageError, match="is stored as F4, expected one of F64, F32"):
        refuse_bad_weights(tmp_path, LLAMA)


BLOCKS = (16, 8)  # rows, columns


def write_float8(source: Path, folder: Path) -> None:
    """Write matrices as DeepSeek publishes them: in float8, with a scale for every block."""
    from safetensors.torch import load_file, save_file

    folder.mkdir()
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": list(BLOCKS)}
    (folder / "config.json").write_text(json.dumps(config))
    found: dict[str, torch.Tensor] = {}
    exact: dict[str, torch.Tensor] = {}
    for key, tensor in load_file(source / "model.safetensors").items():
        exact[key] = tensor
        if not key.endswith("proj.weight") and not key.endswith("with_mqa.weight"):
            found[key] = tensor
            continue
        stored = torch.empty(tensor.shape, dtype=torch.float8_e4m3fn)
        scales = torch.empty([-(-s // b) for s, b in zip(tensor.shape, BLOCKS, strict=True)])
        exact[key] = torch.empty_like(tensor)
        for row in range(scales.shape[0]):
            for column in range(scales.shape[1]):
                place = (
                    slice(row * BLOCKS[0], (row + 1) * BLOCKS[0]),
                    slice(column * BLOCKS[1], (column + 1) * BLOCKS[1]),
                )
                scale = tensor[place].abs().max() / 448
                scales[row, column] = scale
                stored[place] = (tensor[place] / scale).to(torch.float8_e4m3fn)
                exact[key][place] = stored[place].float() * scale
        found[key], found[key + "_scale_inv"] = stored, scales
    save_file(found, folder / "model.safetensors")
    save_file(exact, folder.with_suffix(".exact"))


def exported_again(checkpoints: Path, folder: Path, exact: Path) -> bool:
    from safetensors.torch import load_file

    export(checkpoints, folder, dtype="fp32")
    ours, expected = load_file(folder / "model.safetensors"), load_file(exact)
    return ours.keys() == expected.keys() and all(
        torch.equal(ours[key], expected[key]) for key in ours
    )


@pytest.mark.parametrize("axes", [{}, {"dp": 2, "tp": 2}], ids=["one", "dp2 x tp2 with ep2"])
def test_weights_in_float8_are_read_by_their_blocks(
    axes: dict[str, int], text: Path, tmp_path: Path
) -> None:
    model = MODELS["deepseek-v3"]
    assert model.moe is not None
    model = replace(model, moe=replace(model.moe, bias_rate=0.0))
    first = trained(text, tmp_path / "first", model)
    run_ranks(export_only, 1, tmp_path / "export", first, tmp_path / "there")
    run_ranks(write_float8, 1, tmp_path / "write", tmp_path / "there", tmp_path / "small")
    made = plan(
        text,
        axes,
        model=model,
        spec={"ep": 2} if axes else {},
        train={"steps": 1, "precision": "fp32", "optimizer": STILL},
        checkpoint={"at_end": True, "init_from": str(tmp_path / "small")},
    )
    train_to_end(made, tmp_path / "second")
    exact = tmp_path / "small.exact"
    saved = tmp_path / "second" / "checkpoints"
    assert run_ranks(exported_again, 1, tmp_path / "back", saved, tmp_path / "hub", exact) == [True]


def export_only(checkpoints: Path, folder: Path) -> None:
    export(checkpoints, folder, dtype="fp32")


def test_float8_without_the_scales_of_its_blocks_is_refused(tmp_path: Path) -> None:
    entries: dict[str, dict[str, Any]] = {
        weight.keys[0]: {"dtype": "BF16", "shape": weight.shape_there} for weight in weights(LLAMA)
    }
    key = "model.layers.1.mlp.down_proj.weight"
    entries[key]["dtype"] = "F8_E4M3"
    for scales, said in (
        (None, "found none"),
        ({"dtype": "F32", "shape": (1, 2)}, r"must be \[1, 1\] of F32, one for each 128 x 128"),
        ({"dtype": "BF16", "shape": (1, 1)}, "of BF16"),
    ):
        extra: dict[str, dict[str, Any]] = {}
        if scales is not None:
            extra = {f"{key}_scale_inv": scales}
        write_zeros(tmp_path, entries | extra)
        with pytest.raises(UsageError, match=f"{key} is stored as F8_E4M3, .*{said}"):
            refuse_bad_weights(tmp_path, LLAMA)
    write_zeros(tmp_path, entries | {f"{key}_scale_inv": {"dtype": "F32", "shape": (1, 1)}})
    refuse_bad_weights(tmp_path, LLAMA)


def write_zeros(folder: Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
    sizes = {"F32": 4, "BF16": 2, "F8_E4M3": 1}
    header, end = {}, 0
    for key, entry in entries.items():
        begin, end = end, end + sizes[entry["dtype"]] * int(np.prod(entry["shape"]))
        header[key] = {**entry, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + bytes(end)
    (folder / "model.safetensors").write_bytes(content)
