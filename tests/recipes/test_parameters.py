"""Parameter counts, compared with published ones and with counts made by hand."""

from dataclasses import replace

import pytest

from parctl.errors import RecipeError
from parctl.recipes.parameters import (
    active_parameters,
    count_parameters,
    is_sparse,
    num_parameters,
)
from parctl.recipes.presets import (
    ALIASES,
    find_preset,
    load_preset,
    model_preset,
    preset_names,
)

# Exact counts of checkpoints, else of papers. Repeated here: a preset cannot vouch for itself.
PUBLISHED = {
    "gpt-2": (124_439_808, 0.0),
    "gpt-3-175b": (174.6e9, 0.001),
    "llama-2-7b": (6_738_415_616, 0.0),
    "llama-2-70b": (68_976_648_192, 0.0),
    "llama-3-8b": (8_030_261_248, 0.0),
    "llama-3-70b": (70_553_706_496, 0.0),
    "llama-3.1-405b": (405_853_388_800, 0.0),
    "mixtral-8x7b": (46_702_792_704, 0.0),
    "mixtral-8x22b": (140_620_634_112, 0.0),
    "qwen3-30b-a3b": (30_532_122_624, 0.0),
    "switch-base-8": (620e6, 0.002),
    "deepseek-v3": (671_026_419_200, 0.0),
    "nemotron-4-340b": (341e9, 0.001),
    "vit-l-16": (304_326_632, 0.0),
    "tiny-llama": (853_120, 0.0),
    "tiny-gpt": (842_496, 0.0),
    "tiny-moe": (1_444_992, 0.0),
    "tiny-vit": (809_354, 0.0),
}


def test_every_preset_is_listed_here() -> None:
    assert preset_names() == sorted(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_the_published_number_of_parameters(name: str) -> None:
    published, tolerance = PUBLISHED[name]
    preset = load_preset(name)
    assert num_parameters(preset.model) == pytest.approx(published, rel=tolerance, abs=0)
    assert (preset.published_parameters, preset.published_tolerance) == (published, tolerance)
    assert preset.published_source


@pytest.mark.parametrize(
    ("name", "active", "tolerance"),
    [
        ("mixtral-8x7b", 12.9e9, 0.003),  # 2401.04088
        ("mixtral-8x22b", 39e9, 0.005),
        ("qwen3-30b-a3b", 3.3e9, 0.02),  # 2505.09388
        ("deepseek-v3", 37e9, 0.02),  # 2412.19437
        ("llama-3-8b", 8_030_261_248, 0.0),
    ],
)
def test_active_parameters_are_those_of_one_token(
    name: str, active: float, tolerance: float
) -> None:
    assert active_parameters(model_preset(name)) == pytest.approx(active, rel=tolerance, abs=0)


def test_the_parts_of_llama_3_8b() -> None:
    count = count_parameters(model_preset("llama-3-8b"))
    assert count.embedding == count.head == 128256 * 4096
    assert (count.positions, count.final_norm, count.mtp, count.encoder) == (0, 4096, 0, ())
    assert len(count.layers) == 32
    layer = count.layers[0]
    assert layer.attention == 2 * 4096 * 4096 + 2 * 4096 * 1024
    assert layer.mlp == 3 * 4096 * 14336
    assert layer.replicated == 2 * 4096
    assert (layer.experts, layer.router, layer.active_experts) == (0, 0, 0)


def test_the_parts_of_tiny_gpt() -> None:
    count = count_parameters(model_preset("tiny-gpt"))
    assert (count.embedding, count.positions, count.head) == (256 * 128, 128 * 128, 0)
    layer = count.layers[0]
    assert layer.attention == 4 * 128 * 128 + 3 * 128  # with the biases of q, k, v
    assert layer.mlp == 2 * 128 * 512 + 512
    assert layer.replicated == 2 * 2 * 128 + 2 * 128  # two layer norms, two row biases


def test_the_parts_of_deepseek_v3() -> None:
    count = count_parameters(model_preset("deepseek-v3"))
    dense, sparse = count.layers[0], count.layers[3]
    assert count.layers[2] == dense
    assert dense.attention == 1536 * 128 * 192 + 512 * 128 * 256 + 128 * 128 * 7168
    assert dense.replicated == 7168 * (1536 + 512 + 64) + 1536 + 512 + 2 * 7168
    assert dense.mlp == 3 * 7168 * 18432
    assert sparse.experts == 256 * 3 * 7168 * 2048
    assert sparse.mlp == 3 * 7168 * 2048  # the shared expert
    assert sparse.router == 256 * 7168 + 256
    assert sparse.active_experts == 8 * 3 * 7168 * 2048


def test_the_prediction_module_of_deepseek_v3_has_11_5_billion_parameters() -> None:
    model = replace(model_preset("deepseek-v3"), num_mtp_layers=1)
    assert count_parameters(model).mtp == pytest.approx(11.5e9, rel=0.01)
    assert active_parameters(model) == active_parameters(model_preset("deepseek-v3"))


def test_every_other_layer_of_switch_is_sparse_in_both_stacks() -> None:
    model = model_preset("switch-base-8")
    count = count_parameters(model)
    sparse = [layer.experts > 0 for layer in count.layers]
    assert sparse == [False, True] * 6
    assert [layer.experts > 0 for layer in count.encoder] == sparse
    assert [is_sparse(model, layer) for layer in range(4)] == [False, True, False, True]
    # cross-attention doubles the attention of decoder layers
    assert count.layers[0].attention == 2 * count.encoder[0].attention


def test_tied_embeddings_count_once() -> None:
    model = model_preset("tiny-llama")
    assert num_parameters(replace(model, tied_embeddings=True)) == 853_120 - 256 * 128


def test_every_alias_names_a_preset_and_hides_none() -> None:
    for alias, name in ALIASES.items():
        assert find_preset(alias) == name
        assert alias not in PUBLISHED
    for name in PUBLISHED:
        assert find_preset(name.upper()) == name


def test_an_unknown_model_is_refused_with_the_nearest() -> None:
    with pytest.raises(RecipeError) as caught:
        model_preset("lama-3-8b")
    assert caught.value.problems[0].hint == "did you mean `llama-3-8b`?"
