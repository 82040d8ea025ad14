"""Models from fields: family defaults, sizes that follow from others, and shapes that cannot be."""

from typing import Any

import pytest

from parctl.recipes.frozen import from_json, to_json
from parctl.recipes.models import complete_model
from parctl.recipes.spec import ModelSpec, MoeSpec

LLAMA: dict[str, Any] = {
    "family": "llama", "num_layers": 2, "dim": 64, "num_heads": 4, "ffn_dim": 128,
    "vocab_size": 320, "max_seq_len": 128,
}  # fmt: skip
MOE: dict[str, Any] = {
    "num_experts": 4, "top_k": 2, "expert_ffn_dim": 96, "num_shared_experts": 0,
    "num_dense_layers": 0, "layer_period": 1, "capacity_factor": None, "aux_loss": 0.01,
    "z_loss": 0.0, "router": "softmax", "weight_scale": 1.0, "bias_rate": 0.001, "num_groups": 1,
    "top_k_groups": 1,
}  # fmt: skip


def test_a_llama_takes_the_defaults_of_its_family() -> None:
    model, faults = complete_model(LLAMA, "mine")
    assert model is not None and not faults
    assert (model.name, model.norm, model.activation, model.positions) == (
        "mine", "rmsnorm", "swiglu", "rope",
    )  # fmt: skip
    assert (model.head_dim, model.num_kv_heads, model.bias, model.tied_embeddings) == (
        16, 4, False, False,
    )  # fmt: skip


def test_a_gpt_needs_no_mlp_width() -> None:
    values = {key: value for key, value in LLAMA.items() if key != "ffn_dim"} | {"family": "gpt"}
    model, _ = complete_model(values, "mine")
    assert model is not None
    assert (model.ffn_dim, model.norm, model.bias, model.tied_embeddings, model.positions) == (
        256, "layernorm", True, True, "learned",
    )  # fmt: skip


def test_a_vision_transformer_has_a_position_per_patch_and_one_for_the_class() -> None:
    vision = {"image_size": 32, "patch_size": 4, "num_channels": 3, "num_classes": 10}
    model, _ = complete_model(
        {"family": "vit", "num_layers": 2, "dim": 64, "num_heads": 4, "vision": vision}, "v"
    )
    assert model is not None
    assert (model.max_seq_len, model.vocab_size, model.causal, model.ffn_dim) == (65, 0, False, 256)


def test_experts_everywhere_need_no_dense_width() -> None:
    values = {key: value for key, value in LLAMA.items() if key != "ffn_dim"}
    model, _ = complete_model({**values, "family": "moe", "moe": MOE}, "m")
    assert model is not None
    assert (model.ffn_dim, model.moe) == (96, MoeSpec(**MOE))


@pytest.mark.parametrize(
    ("change", "path", "says"),
    [
        ({"family": None}, "", "says neither `preset`, `hf` nor `family`"),
        ({"dim": None, "vocab_size": None}, "", "leaves out dim, vocab_size"),
        ({"family": "moe"}, "", "leaves out moe"),
        ({"dim": 66}, "num_heads", "dim (66) / num_heads (4) is not a whole number"),
        ({"num_kv_heads": 3}, "num_kv_heads", "num_heads (4) / num_kv_heads (3)"),
        ({"head_dim": 15}, "head_dim", "rotates 15 elements"),
        ({"head_dim": 6, "rope_fraction": 0.5}, "head_dim", "rotates 3 elements"),
        ({"vocab_size": 0}, "vocab_size", "found 0, expected at least 2"),
        ({"moe": MOE}, "moe", "found `moe` in a llama model"),
        ({"family": "moe", "moe": {**MOE, "top_k": 5}}, "moe.top_k", "top_k (5) > num_experts (4)"),
        ({"family": "moe", "moe": {**MOE, "num_dense_layers": 2}}, "moe.num_dense_layers",
         "leaves none of 2 layers"),
        ({"family": "moe", "moe": {**MOE, "num_groups": 3}}, "moe.num_groups", "is not whole"),
        ({"sliding_layers": [0]}, "sliding_layers", "found layers and no `sliding_window`"),
        ({"sliding_window": 8, "sliding_layers": [0, 2]}, "sliding_layers", "found layer 2"),
        ({"sliding_window": 8, "causal": False}, "sliding_window", "found a window of 8 tokens"),
    ],
)  # fmt: skip
def test_a_shape_that_cannot_be_is_refused(change: dict[str, Any], path: str, says: str) -> None:
    model, faults = complete_model({**LLAMA, **change}, "m")
    assert model is None
    assert faults[0].path == path
    assert says in faults[0].message
    assert faults[0].hint


def test_a_window_is_kept_where_no_layer_sees_further() -> None:
    every, faults = complete_model({**LLAMA, "sliding_window": 8}, "m")
    assert every is not None, faults
    assert (every.window(0), every.window(1), every.kept_window) == (8, 8, 8)
    second, faults = complete_model({**LLAMA, "sliding_window": 8, "sliding_layers": [1]}, "m")
    assert second is not None, faults
    assert (second.window(0), second.window(1), second.kept_window) == (None, 8, None)


def test_a_model_that_was_written_before_there_were_windows_is_read() -> None:
    model, faults = complete_model(LLAMA, "m")
    assert model is not None, faults
    content = to_json(model)
    del content["sliding_window"], content["sliding_layers"]
    assert from_json(ModelSpec, content) == model


LENGTHS = {"factor": 8.0, "original_max_seq_len": 64}
FREQUENCIES = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}


@pytest.mark.parametrize("own", [FREQUENCIES, BETAS, BETAS | {"mscale": 1.0}])
def test_positions_are_stretched_in_one_of_two_ways(own: dict[str, float]) -> None:
    absent = {"mscale_all_dim": None}
    model, faults = complete_model(LLAMA | {"rope_scaling": LENGTHS | own | absent}, "mine")
    assert model is not None and not faults
    assert model.rope_scaling == LENGTHS | own


@pytest.mark.parametrize(
    "own", [{}, {"beta_fast": 32.0}, FREQUENCIES | BETAS, FREQUENCIES | {"mscale": 1.0}]
)
def test_half_of_a_stretching_or_two_are_refused(own: dict[str, float]) -> None:
    model, (fault,) = complete_model(LLAMA | {"rope_scaling": LENGTHS | own}, "mine")
    assert model is None
    assert fault.path == "rope_scaling"
    assert "beside factor and original_max_seq_len" in fault.message
