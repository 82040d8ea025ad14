"""Weights go to Hugging Face's format and come back: the same logits, on any layout."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.runtime.harness import read_logs, run_ranks, train_to_end
from tests.runtime.plans import GPT, LLAMA, OPTIMIZER, plan

from parctl.cli.main import run
from parctl.errors import UsageError
from parctl.launcher.launch import launch_plan
from parctl.launcher.places import runs_root
from parctl.recipes.frozen import to_json
from parctl.recipes.hf_config import read_hf_config
from parctl.recipes.models import complete_model
from parctl.recipes.spec import MlaSpec, ModelSpec, MoeSpec
from parctl.runtime.huggingface.check import refuse_bad_weights
from parctl.runtime.huggingface.export import export, read
from parctl.runtime.huggingface.files import list_tensors
from parctl.runtime.huggingface.names import Pairs, weights
from parctl.runtime.model.transformer import Transformer

MOE = MoeSpec(
    num_experts=4,
    top_k=2,
    expert_ffn_dim=48,
    num_shared_experts=0,
    num_dense_layers=0,
    layer_period=1,
    capacity_factor=None,
    aux_loss=0.01,
    z_loss=0.0,
    router="softmax",
    weight_scale=1.0,
    bias_rate=0.001,
    num_groups=1,
    top_k_groups=1,
)
SCALING = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_seq_len": 16.0,
}
MODELS: dict[str, ModelSpec] = {
    "llama with grouped heads": LLAMA,
    "tied llama": replace(LLAMA, tied_embeddings=True),
    "llama 3.1 frequencies": replace(LLAMA, rope_scaling=SCALING, rope_theta=500_000.0),
    "llama with biases": replace(LLAMA, bias=True, qkv_bias=True),
    "qwen2": replace(LLAMA, qkv_bias=True, norm_eps=1e-6),
    "qwen3": replace(LLAMA, qk_norm=True, head_dim=16),
    "gpt2": GPT,
    "mixtral": replace(LLAMA, family="moe", moe=MOE),
    "qwen3-moe": replace(
        LLAMA, family="moe", qk_norm=True, moe=replace(MOE, expert_ffn_dim=16, num_dense_layers=1)
    ),
    "deepseek-v3": replace(
        LLAMA,
        family="moe",
        norm_eps=1e-6,
        num_kv_heads=4,
        head_dim=12,
        mla=MlaSpec(
            q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8
        ),
        moe=replace(
            MOE,
            num_experts=8,
            expert_ffn_dim=16,
            num_shared_experts=1,
            num_dense_layers=1,
            router="sigmoid",
            weight_scale=2.5,
            num_groups=4,
            top_k_groups=2,
        ),
    ),
}
T5 = replace(
    LLAMA,
    name="test-t5",
    family="t5",
    num_kv_heads=4,
    norm_eps=1e-6,
    activation="relu",
    positions="relative",
    tied_embeddings=True,
    num_encoder_layers=2,
)
YARN = {"factor": 4.0, "original_max_seq_len": 8.0, "beta_fast": 2.0, "beta_slow": 0.25}
MODELS["llama with yarn"] = replace(LLAMA, head_dim=16, rope_scaling=YARN)
MODELS["deepseek-v3 with yarn"] = replace(
    MODELS["deepseek-v3"],
    rope_theta=100.0,
    rope_scaling=YARN | {"mscale": 1.0, "mscale_all_dim": 0.7},
)
MODELS["mistral with a window that all tokens fit in"] = replace(LLAMA, sliding_window=8)
MODELS["t5"] = T5
MODELS["switch"] = replace(
    T5,
    max_seq_len=8,
    moe=replace(MOE, num_experts=4, top_k=1, capacity_factor=1.5, layer_period=2, aux_loss=0.001),
)
TOKENS = [[1, 7, 42, 255, 0, 3, 3, 99], [5, 6, 7, 8, 9, 10, 11, 12]]


@pytest.fixture(scope="module", autouse=True)
def transformers_once() -> None:
    """Import here what every fork would import anew; it starts no threads."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    assert AutoConfig and AutoModelForCausalLM and AutoModelForSeq2SeqLM and AutoTokenizer


def trained(text: Path, run_dir: Path, model: ModelSpec, axes: Mapping[str, int] = {}) -> Path:
    """Train two steps, so that biases and norms are not what they began as."""
    train = {"steps": 2, "precision": "fp32"}
    made = plan(text, axes, model=model, train=train, checkpoint={"at_end": True})
    train_to_end(made, run_dir)
    return run_dir / "checkpoints"


def their_logits(folder: Path) -> list[Any]:
    """Logits of `transformers`, in float32. An encoder reads the tokens backwards."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    pairs = AutoConfig.from_pretrained(folder).is_encoder_decoder
    kind = AutoModelForSeq2SeqLM if pairs else AutoModelForCausalLM
    model, told = kind.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(told.values()), told
    tokens = torch.tensor(TOKENS)
    inputs = {"input_ids": tokens.flip(1), "decoder_input_ids": tokens}
    with torch.no_grad():
        out = model.eval()(**inputs) if pairs else model.eval()(tokens)
    logits: list[Any] = out.logits.tolist()
    return logits


def our_logits(checkpoints: Path, model: ModelSpec) -> list[Any]:
    (newest,) = checkpoints.glob("step-*")
    ours = Transformer(model)
    ours.load_state_dict(read(newest, weights(model), torch.float32), strict=False)
    tokens = torch.tensor(TOKENS)
    source = {"source": tokens.flip(1)} if model.num_encoder_layers else {}
    with torch.no_grad():
        logits: list[Any] = ours.eval()(tokens, **source).tolist()
    return logits


def compare(checkpoints: Path, folder: Path, model: ModelSpec) -> float:
    """Export; return the largest difference of the two logits. For a fork."""
    export(checkpoints, folder, dtype="fp32")
    theirs, ours = their_logits(folder), our_logits(checkpoints, model)
    return float((torch.tensor(theirs) - torch.tensor(ours)).abs().max())


@pytest.mark.parametrize("name", MODELS)
def test_exported_weights_give_the_same_logits_in_transformers(
    name: str, text: Path, tmp_path: Path
) -> None:
    model = MODELS[name]
    checkpoints = trained(text, tmp_path / "run", model)
    (difference,) = run_ranks(
        compare, 1, tmp_path / "compare", checkpoints, tmp_path / "exported", model
    )
    assert difference < 1e-5  # of logits up to 1


@pytest.mark.parametrize("name", MODELS)
def test_what_was_exported_is_read_as_the_same_model(name: str, tmp_path: Path) -> None:
    from parctl.runtime.huggingface.config import config_of

    model = MODELS[name]
    (tmp_path / "config.json").write_text(json.dumps(config_of(model, dtype="float32")))
    values, faults = read_hf_config(tmp_path)
    assert not faults
    read, faults = complete_model(values, model.name)
    assert not faults
    ours, theirs = to_json(model), to_json(read)
    if model.moe is not None:  # how routers are balanced in training is not in every config.json
        ours["moe"].pop("aux_loss"), theirs["moe"].pop("aux_loss")
    assert theirs == ours


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_has_its_key_and_shape(name: str) -> None:
    with torch.device("meta"):
        ours = Transformer(MODELS[name])
    expected = {name: tuple(value.shape) for name, value in ours.state_dict().items()}
    if MODELS[name].tied_embeddings:
        expected.pop("head.weight")
    assert {weight.name: weight.shape for weight in weights(MODELS[name])} == expected


def export_files(checkpoints: Path, folder: Path, file_bytes: int) -> dict[str, bytes]:
    """Export in several files; return the tensors' bytes by key, read by the format's package."""
    from safetensors.torch import load_file

    export(checkpoints, folder, dtype="fp32", file_bytes=file_bytes)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 1
    found = {
        key: tensor.numpy().tobytes()
        for name in set(index.values())
        for key, tensor in load_file(folder / name).items()
    }
    assert found.keys() == index.keys()
    return found


STILL = replace(OPTIMIZER, lr=0.0, min_lr=0.0)
WAYS_BACK: dict[str, tuple[str, dict[str, int], dict[str, Any]]] = {
    "llama, fsdp2 x tp2+sp": ("llama with grouped heads", {"fsdp": 2, "tp": 2}, {"sp": True}),
    "tied llama, pp2": ("tied llama", {"pp": 2}, {}),
    "gpt2, tp2": ("gpt2", {"tp": 2}, {}),
    "mixtral, fsdp2 with ep2": ("mixtral", {"fsdp": 2}, {"spec": {"ep": 2}}),
    "switch, fsdp2 with ep2": ("switch", {"fsdp": 2}, {"spec": {"ep": 2}}),
    "deepseek-v3, dp2 x tp2 with ep2": (
        "deepseek-v3",
        {"dp": 2, "tp": 2},
        {"spec": {"ep": 2}},
    ),
}


@pytest.mark.parametrize("case", WAYS_BACK)
def test_weights_come_back_bit_by_bit_on_any_layout(case: str, text: Path, tmp_path: Path) -> None:
    """Trained, exported, read by a split run that does not move them, exported again."""
    name, axes, options = WAYS_BACK[case]
    model = MODELS[name]
    if model.moe is not None:  # nor does the balance bias move
        model = replace(model, moe=replace(model.moe, bias_rate=0.0))
    first = trained(text, tmp_path / "first", MODELS[name])
    (exported,) = run_ranks(export_files, 1, tmp_path / "export", first, tmp_path / "there", 40_000)
    made = plan(
        text,
        axes,
        model=model,
        train={"steps": 1, "precision": "fp32", "optimizer": STILL},
        checkpoint={"at_end": True, "init_from": str(tmp_path / "there")},
        **options,
    )
    train_to_end(made, tmp_path / "second")
    assert "starting from the weights in" in read_logs(tmp_path / "second")
    (again,) = run_ranks(
        export_files,
        1,
        tmp_path / "again",
        tmp_path / "second" / "checkpoints",
        tmp_path / "back",
        40_000,
    )
    assert again == exported


def test_what_transformers_writes_is_read(text: Path, tmp_path: Path) -> None:
    """Weights of a Llama that `transformers` made, in bfloat16, cast to float32."""
    run_ranks(make_llama, 1, tmp_path / "make", tmp_path / "theirs")
    values, faults = read_hf_config(tmp_path / "theirs")
    assert not faults
    model, _ = complete_model(values, "theirs")
    assert model is not None
    made = plan(
        text,
        {"fsdp": 2},
        model=model,
        train={"steps": 1, "precision": "fp32", "optimizer": STILL},
        checkpoint={"at_end": True, "init_from": str(tmp_path / "theirs")},
    )
    train_to_end(made, tmp_path / "run")
    (difference,) = run_ranks(
        compare, 1, tmp_path / "compare", tmp_path / "run/checkpoints", tmp_path / "ours", model
    )
    assert difference < 1e-5
    (same,) = run_ranks(same_logits, 1, tmp_path / "same", tmp_path / "ours", tmp_path / "theirs")
    assert same


def make_llama(folder: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def same_logits(first: Path, second: Path) -> bool:
    return their_logits(first) == their_logits(second)


def run_command(words: list[str]) -> int:
    return run(words)


def test_the_command_exports_the_newest_checkpoint_in_bfloat16(text: Path, tmp_path: Path) -> None:
    checkpoints = trained(text, tmp_path / "run", LLAMA)
    words = ["export", str(checkpoints), str(tmp_path / "hub")]
    assert run_ranks(run_command, 1, tmp_path / "first", words) == [0]
    assert (
        "LlamaForCausalLM of step-00000002: 21 tensors, 0.00 GB, 1 files"
        in (tmp_path / "first" / "rank-0.log").read_text()
    )
    stored = list_tensors(tmp_path / "hub")
    assert {tensor.dtype for tensor in stored.values()} == {"BF16"}
    assert stored["model.layers.1.mlp.down_proj.weight"].shape == (32, 48)
    assert json.loads((tmp_path / "hub" / "config.json").read_text())["dtype"] == "bfloat16"
    assert run_ranks(run_command, 1, tmp_path / "second", words) == [2]
    assert "hub is there already" in (tmp_path / "second" / "rank-0.log").read_text()
    words[1] = str(tmp_path / "hub")
    assert run_ranks(run_command, 1, tmp_path / "third", words) == [2]
    assert "hub holds no whole checkpoint" in (tmp_path / "third" / "rank-0.log").read_text()


def test_an_export_of_what_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run and no folder has this name"):
        export(tmp_path / "nosuch", tmp_path / "hub", dtype="bf16")


def test_an_exported_model_claims_no_end_token_of_another_vocabulary() -> None:
    from transformers import GPT2Config

    from parctl.runtime.huggingface.config import config_of

    assert GPT2Config(**config_of(GPT, dtype="float32")).eos_token_id is None


@pytest.mark.parametrize(
    ("changes", "kind", "layers"),
    [
        ({}, "mistral", None),
        ({"family": "moe", "moe": MOE}, "mixtral", None),
        ({"qkv_bias": True, "sliding_layers": (1,)}, "qwen2", (1,)),
        ({"qk_norm": True}, "qwen3", None),
    ],
)
def test_an_exported_window_is_read_back(
    changes: dict[str, Any], kind: str, layers: tuple[int, ...] | None, tmp_path: Path
) -> None:
    from parctl.runtime.huggingface.config import config_of

    config = config_of(replace(LLAMA, sliding_window=4, **changes), dtype="float32")
    assert config["model_type"] == kind
    (tmp_path / "config.json").write_text(json.dumps(config))
    values, faults = read_hf_config(tmp_path)
    model, more = complete_model(values, "read")
    assert model is not None, (faults, more)
    assert (model.sliding_window, model.sliding_layers) == (4, layers)


def test_rows_of_rotated_pairs_change_places() -> None:
    """Two rows that stay, then two pairs: real parts first here, side by side there."""
    pairs = Pairs(period=6, count=4)
    assert [pairs.row_there(row) for row in range(12)] == [0, 1, 2, 4, 3, 5, 6, 7, 8, 10, 9, 11]


def test_what_hugging_face_lacks_is_refused_by_name() -> None:
    for changes, named in (
        ({"norm": "layernorm"}, "no llama model of Hugging Face .*: norm layernorm"),
        ({"rope_fraction": 0.5}, "rope_fraction 0.5"),
        ({"qk_norm": True, "bias": True}, "no qwen3 model .* biases beside qk_norm"),
        ({"sliding_window": 4, "sliding_layers": (0,)}, "no llama model .* a sliding window"),
        ({"family": "moe", "moe": replace(MOE, capacity_factor=1.0)}, "mixtral .* capacity"),
    ):
        with pytest.raises(UsageError, match=named):
            list(weights(replace(LLAMA, **changes)))


def save(folder: Path, tensors: Mapping[str, tuple[int, ...]]) -> None:
    from safetensors.numpy import save_file

    folder.mkdir()
    arrays = {key: np.zeros(shape, dtype=np.float32) for key, shape in tensors.items()}
    save_file(arrays, folder / "model.safetensors")


def test_wrong_folders_are_refused_with_file_and_key_before_the_start(tmp_path: Path) -> None:
    shapes = {weight.keys[0]: weight.shape_there for weight in weights(LLAMA)}
    save(tmp_path / "good", shapes)
    refuse_bad_weights(tmp_path / "good", LLAMA)
    save(tmp_path / "short", {**shapes, "lm_head.weight": (256, 16)})
    key = "model.layers.1.mlp.up_proj.weight"
    save(tmp_path / "less", {name: shape for name, shape in shapes.items() if name != key})
    (tmp_path / "cut").mkdir()
    whole = (tmp_path / "good" / "model.safetensors").read_bytes()
    (tmp_path / "cut" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {key: "model-00001-of-00002.safetensors"}})
    )
    (tmp_path / "empty").mkdir()
    for name, said in (
        ("none", "checkpoint.init_from = .*none: no such folder"),
        ("empty", "holds neither model.safetensors nor model.safetensors.index.json"),
        ("short", r"lm_head.weight has shape \[256, 16\], test-llama needs \[256, 32\]"),
        ("less", f"has no tensor {key}, which test-llama needs"),
        ("cut", r"cut/model.safetensors: not a whole safetensors file: \d+ bytes expected"),
        ("index", "model-00001-of-00002.safetensors: no such file"),
    ):
        with pytest.raises(UsageError, match=said):
            refuse_bad_weights(tmp_path / name, LLAMA)
    (tmp_path / "text.txt").write_text("text")
    made = plan(tmp_path / "text.txt", {}, checkpoint={"init_from": str(tmp_path / "less")})
    with pytest.raises(UsageError, match="has no tensor"):
        launch_plan(made, run_id="less-1")
    assert not (runs_root() / "less-1").exists()
