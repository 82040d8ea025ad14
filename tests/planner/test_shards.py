"""What one rank holds, by hand and against the whole model."""

import pytest

from parctl.planner.degrees import Degrees
from parctl.planner.shards import (
    embedding_shard,
    head_shard,
    largest_unit,
    layer_shard,
    stage_shard,
)
from parctl.planner.stages import split_layers
from parctl.recipes.parameters import count_parameters, num_parameters
from parctl.recipes.presets import model_preset, preset_names


@pytest.mark.parametrize("name", preset_names())
def test_one_rank_alone_holds_the_whole_model(name: str) -> None:
    model = model_preset(name)
    count = count_parameters(model)
    layers = range(model.num_layers)
    shard = stage_shard(model, count, layers, Degrees(), first=True, last=True)
    assert shard.total == num_parameters(model)


@pytest.mark.parametrize("name", ["llama-3-8b", "llama-3.1-405b", "mixtral-8x7b", "deepseek-v3"])
def test_the_stages_hold_the_model_together(name: str) -> None:
    model = model_preset(name)
    count, degrees = count_parameters(model), Degrees(pp=4)
    stages = split_layers(model, 4)
    total = sum(
        stage_shard(model, count, layers, degrees, first=index == 0, last=index == 3).total
        for index, layers in enumerate(stages)
    )
    assert total == num_parameters(model)


def test_llama_8b_over_8_tensor_ranks_by_hand() -> None:
    model = model_preset("llama-3-8b")
    count, degrees = count_parameters(model), Degrees(tp=8)
    attention = (2 * 4096 * 4096 + 2 * 4096 * 1024) // 8
    mlp = 3 * 4096 * 14336 // 8
    norms = 2 * 4096
    assert layer_shard(model, count.layers[0], degrees).dense == attention + mlp + norms
    assert embedding_shard(model, count, degrees).dense == 128256 // 8 * 4096
    assert head_shard(model, count, degrees).dense == 128256 // 8 * 4096 + 4096
    whole = stage_shard(model, count, range(32), degrees, first=True, last=True)
    assert whole.total == 1_004_015_616


def test_key_value_heads_fewer_than_ranks_stay_whole() -> None:
    model = model_preset("llama-3-8b")  # 8 KV heads
    count = count_parameters(model)
    queries_and_output, keys_values = 2 * 4096 * 4096 // 16, 2 * 4096 * 1024
    mlp, norms = 3 * 4096 * 14336 // 16, 2 * 4096
    shard = layer_shard(model, count.layers[0], Degrees(tp=16))
    assert shard.dense == queries_and_output + keys_values + mlp + norms


def test_a_vocabulary_that_does_not_divide_is_rounded_up() -> None:
    model = model_preset("gpt-2")
    shard = embedding_shard(model, count_parameters(model), Degrees(tp=2))
    assert shard.dense == 25129 * 768 + 1024 * 768  # 50,257 / 2, and positions whole


def test_a_tied_head_is_a_second_copy_only_on_another_stage() -> None:
    model = model_preset("gpt-2")
    count = count_parameters(model)
    assert head_shard(model, count, Degrees()).dense == 2 * 768
    assert head_shard(model, count, Degrees(pp=2)).dense == 50257 * 768 + 2 * 768


def test_experts_are_split_by_ep_and_etp_and_the_rest_by_tp() -> None:
    model = model_preset("mixtral-8x7b")
    count = count_parameters(model)
    layer = count.layers[0]
    shard = layer_shard(model, layer, Degrees(dp=4, tp=2, ep=4, etp=2))
    assert shard.experts == 8 * 3 * 4096 * 14336 // 8
    assert shard.dense == layer.attention // 2 + 4096 * 8 + 2 * 4096
    assert layer_shard(model, layer, Degrees(dp=4, tp=2, ep=4)).experts == 2 * shard.experts


def test_the_largest_unit_may_be_the_embedding() -> None:
    model = model_preset("llama-3-8b")
    count = count_parameters(model)
    layer = layer_shard(model, count.layers[0], Degrees())
    middle = largest_unit(model, count, [5], Degrees(), first=False, last=False)
    ends = largest_unit(model, count, [0], Degrees(), first=True, last=False)
    assert middle == layer
    assert ends.total == 128256 * 4096
