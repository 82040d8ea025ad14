"""Hugging Face configurations of the supported families, by the numbers of their checkpoints."""

import json
from pathlib import Path
from typing import Any

import pytest

from parctl.recipes.hf_config import read_hf_config
from parctl.recipes.loader import load_recipe
from parctl.recipes.models import complete_model
from parctl.recipes.parameters import num_parameters

CONFIGS: dict[str, tuple[int, dict[str, Any]]] = {
    "llama-3.1-8b": (8_030_261_248, {
        "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096,
        "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
        "vocab_size": 128256, "max_position_embeddings": 131072, "rope_theta": 500000.0,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
        "tie_word_embeddings": False,
    }),
    "gpt2": (124_439_808, {
        "model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024,
        "vocab_size": 50257, "layer_norm_epsilon": 1e-5,
    }),
    "mixtral-8x7b": (46_702_792_704, {
        "model_type": "mixtral", "num_hidden_layers": 32, "hidden_size": 4096,
        "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
        "vocab_size": 32000, "max_position_embeddings": 32768, "rope_theta": 1e6,
        "num_local_experts": 8, "num_experts_per_tok": 2,
    }),
    "qwen2.5-7b": (7_615_616_512, {
        "model_type": "qwen2", "num_hidden_layers": 28, "hidden_size": 3584,
        "num_attention_heads": 28, "num_key_value_heads": 4, "intermediate_size": 18944,
        "vocab_size": 152064, "max_position_embeddings": 131072, "rope_theta": 1e6,
    }),
    "qwen3-30b-a3b": (30_532_122_624, {
        "model_type": "qwen3_moe", "num_hidden_layers": 48, "hidden_size": 2048, "head_dim": 128,
        "num_attention_heads": 32, "num_key_value_heads": 4, "intermediate_size": 6144,
        "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8,
        "vocab_size": 151936, "max_position_embeddings": 40960, "norm_topk_prob": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_gives_the_parameters_of_its_checkpoint(name: str, tmp_path: Path) -> None:
    parameters, config = CONFIGS[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    values, faults = read_hf_config(tmp_path)
    assert not faults
    model, faults = complete_model(values, name)
    assert model is not None, faults
    assert num_parameters(model) == parameters


def test_experts_are_counted_under_the_names_of_older_and_newer_files(tmp_path: Path) -> None:
    config = CONFIGS["qwen3-30b-a3b"][1]
    renamed = {key: value for key, value in config.items() if key != "num_experts"}
    for given in (config, renamed | {"num_local_experts": 128}):
        (tmp_path / "config.json").write_text(json.dumps(given))
        values, faults = read_hf_config(tmp_path)
        assert not faults
        assert values["moe"]["num_experts"] == 128
    (tmp_path / "config.json").write_text(json.dumps(renamed))
    _, (fault,) = read_hf_config(tmp_path)
    assert "leaves out 'num_experts'" in fault.message


def test_rope_settings_are_taken_from_old_and_new_files(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIGS["llama-3.1-8b"][1]))
    values, _ = read_hf_config(tmp_path)
    assert values["rope_scaling"] == {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_seq_len": 8192,
    }  # fmt: skip
    config.write_text(json.dumps(CONFIGS["qwen3-30b-a3b"][1]))
    values, _ = read_hf_config(tmp_path)
    assert (values["rope_theta"], values["qk_norm"], values.get("rope_scaling")) == (
        1e6,
        True,
        None,
    )


def test_a_wrong_type_inside_is_refused(tmp_path: Path) -> None:
    config = {**CONFIGS["gpt2"][1], "n_layer": "12"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    _, (fault,) = read_hf_config(tmp_path)
    assert "num_layers" in fault.message


@pytest.mark.parametrize("value", [-1, "x", True, 1.5, [1]])
def test_a_rope_scaling_that_is_no_mapping_is_refused(value: Any, tmp_path: Path) -> None:
    config = CONFIGS["llama-3.1-8b"][1] | {"rope_scaling": value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    _, faults = read_hf_config(tmp_path)
    assert [fault.path for fault in faults] == ["hf"]
    assert f"rope_scaling: found {value!r}, expected keys with values" in faults[0].message


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("llama-3.1-8b", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "type 'linear'"),
        ("llama-3.1-8b", {"rope_scaling": {"rope_type": "longrope"}}, "type 'longrope'"),
        ("qwen3-30b-a3b", {"rope_parameters": {"rope_type": "dynamic"}}, "type 'dynamic'"),
        ("llama-3.1-8b", {"hidden_act": "gelu"}, "activation 'gelu'"),
        ("gpt2", {"activation_function": "relu"}, "activation 'relu'"),
        ("llama-3.1-8b", {"attention_bias": True}, "attention_bias without mlp_bias"),
        ("qwen2.5-7b", {"layer_types": ["chunked_attention"] * 28}, "layer_types"),
        ("llama-3.1-8b", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ("qwen3-30b-a3b", {"norm_topk_prob": False}, "norm_topk_prob: false"),
        ("qwen3-30b-a3b", {"mlp_only_layers": [3]}, "mlp_only_layers that are not the first"),
    ],
)
def test_what_would_be_another_model_if_ignored_is_refused(
    name: str, changes: dict[str, Any], named: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[name][1] | changes))
    values, (fault,) = read_hf_config(tmp_path)
    assert values == {}
    assert named in fault.message
    assert fault.message.endswith("which no model of parctl computes")


BOTH = ["sliding_attention", "full_attention"]


@pytest.mark.parametrize(
    ("changes", "window", "layers"),
    [
        ({"model_type": "mistral", "sliding_window": 1024}, 1024, None),
        ({"model_type": "mistral"}, 4096, None),  # the default of the model type
        ({"model_type": "mistral", "sliding_window": None}, None, None),
        ({"model_type": "mixtral", "num_local_experts": 8, "sliding_window": 512}, 512, None),
        ({"model_type": "llama", "sliding_window": 512}, None, None),  # it has none
        ({"model_type": "qwen2", "sliding_window": 512}, None, None),  # switched off
        ({"model_type": "qwen2", "use_sliding_window": True}, 4096, [28, 29, 30, 31]),
        ({"model_type": "qwen3", "use_sliding_window": True, "max_window_layers": 0}, 4096, None),
        ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 32}, None, None),
        (
            {"model_type": "qwen3", "use_sliding_window": True, "layer_types": BOTH * 16},
            4096,
            list(range(0, 32, 2)),
        ),
    ],
)
def test_a_sliding_window_is_that_of_the_model_type(
    changes: dict[str, Any], window: int | None, layers: list[int] | None, tmp_path: Path
) -> None:
    config = CONFIGS["llama-3.1-8b"][1] | {"mlp_bias": True} | changes  # 32 layers
    (tmp_path / "config.json").write_text(json.dumps(config))
    values, faults = read_hf_config(tmp_path)
    assert not faults
    assert values["max_seq_len"] == 131072
    assert (values.get("sliding_window"), values.get("sliding_layers")) == (window, layers)


def test_a_folder_with_weights_gives_the_first_weights(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").write_text(json.dumps(CONFIGS["llama-3.1-8b"][1]))
    text = "version: 1\nmodel: {hf: hub}\nparallelism: FSDP8\n"
    (tmp_path / "bare.yaml").write_text(text)
    (tmp_path / "drawn.yaml").write_text(text + "checkpoint: {init_from: random}\n")
    (tmp_path / "other.yaml").write_text(text + "checkpoint: {init_from: other}\n")

    def first_weights(name: str) -> str | None:
        checkpoint = load_recipe(str(tmp_path / name)).checkpoint
        assert checkpoint is not None
        return checkpoint.init_from

    assert first_weights("bare.yaml") is None
    (tmp_path / "hub" / "model.safetensors").touch()
    assert first_weights("bare.yaml") == str(tmp_path / "hub")
    assert first_weights("drawn.yaml") is None
    assert first_weights("other.yaml") == str(tmp_path / "other")
