"""What cannot work is refused with its reason before there is a run, let alone a process."""

import json
from array import array
from collections.abc import Callable
from pathlib import Path

import pytest

import parctl
from parctl.errors import ParctlError
from parctl.launcher.places import runs_root

RECIPE = """\
version: 1
name: bad
model: {model}
parallelism: {form}
train: {{seq_len: 64, global_batch: {batch}, micro_batch: 1, steps: 2}}
data: {{train: [{data}]}}
"""
TINY = (
    "{family: llama, num_layers: 2, dim: 32, num_heads: 4, ffn_dim: 64, vocab_size: 256, "
    "max_seq_len: 64}"
)
EXPERTS = (
    TINY.replace("llama", "moe")[:-1] + ", moe: {num_experts: 6, top_k: 2, expert_ffn_dim: 64}}"
)


def text(folder: Path) -> str:
    (folder / "text.txt").write_text("Some text, and more of it.\n" * 400)
    return "text.txt"


def empty(folder: Path) -> str:
    (folder / "empty.txt").touch()
    return "empty.txt"


def binary(folder: Path) -> str:
    (folder / "image.txt").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00")
    return "image.txt"


def foreign(folder: Path) -> str:
    (folder / "tokens.bin").write_bytes(array("H", [1, 2, 50_000] * 400).tobytes())
    return "tokens.bin"


def no_weights(folder: Path) -> None:
    """A Hugging Face folder whose files lack a tensor."""
    (folder / "hub").mkdir()
    config = {
        "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 32, "vocab_size": 256,
        "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 64,
    }  # fmt: skip
    (folder / "hub" / "config.json").write_text(json.dumps(config))
    header = json.dumps({}).encode()
    content = len(header).to_bytes(8, "little") + header
    (folder / "hub" / "model.safetensors").write_bytes(content)


CASES: dict[str, tuple[str, str, int, Callable[[Path], str], str]] = {
    "micro-batches": (TINY, "DP2", 7, text, r"global_batch \(7\) / \(micro_batch \(1\) x dp \(2\)"),
    "heads": (TINY, "TP3", 8, text, r"num_heads \(4\) / tp \(3\) is not a whole number"),
    "stages": (TINY, "PP4", 8, text, r"pp \(4\) = 4 stages, but the model has 2 layers"),
    "experts": (EXPERTS, "DP4+EP4", 8, text, r"num_experts \(6\) / ep \(4\) is not a whole number"),
    "no such folder": ("{hf: hub}", "DP2", 8, text, r"cannot read `\S+/hub/config.json`"),
    "folder without weights": ("{hf: hub}", "DP2", 8, text, "hub has no tensor model.embed_tokens"),
    "empty file": (TINY, "DP2", 8, empty, r"empty.txt: is empty"),
    "binary file": (TINY, "DP2", 8, binary, r"image.txt:2: a NUL byte|image.txt:1: byte 1 of"),
    "vocabulary": (TINY, "DP2", 8, foreign, r"tokens.bin: token 2 is 50000, but model.vocab_size"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused_before_any_process_starts(case: str, tmp_path: Path) -> None:
    model, form, batch, data, said = CASES[case]
    if case == "folder without weights":
        no_weights(tmp_path)
    path = tmp_path / "bad.yaml"
    path.write_text(RECIPE.format(model=model, form=form, batch=batch, data=data(tmp_path)))
    with pytest.raises(ParctlError, match=said) as caught:
        parctl.launch(parctl.plan(parctl.load(str(path)), cluster="cpu:1x4"))
    assert caught.value.exit_code == 2
    assert not runs_root().exists() or not list(runs_root().iterdir())
