"""A shrunk recipe is small, still valid, and still split in the ways of the full one."""

from pathlib import Path

import pytest

from parctl.planner.fold import fold
from parctl.planner.shrink import Shrunk, shrink
from parctl.recipes.checks import check_recipe
from parctl.recipes.loader import load_recipe
from parctl.recipes.parameters import num_parameters
from parctl.recipes.presets import preset_names
from parctl.recipes.shipped import shipped_recipes
from parctl.recipes.spec import ModelSpec


def shrunk(line: str, *overrides: str) -> list[Shrunk]:
    recipe = load_recipe(line, overrides)
    parts = fold(recipe.parallelism, 8)
    return shrink(recipe, parts, precision="fp64", text=Path("text.txt"))


def small_model(line: str, *overrides: str) -> ModelSpec:
    model = shrunk(line, *overrides)[0].parallel.model
    assert model
    return model


SHIPPED = [recipe.name for recipe in shipped_recipes() if load_recipe(recipe.name).task == "train"]
PRESETS = [f"{name}: FSDP2+TP2" for name in preset_names()]


@pytest.mark.parametrize("line", [*SHIPPED, *PRESETS])
def test_every_shipped_recipe_and_model_shrinks_to_a_valid_recipe(line: str) -> None:
    for case in shrunk(line):
        for recipe in (case.parallel, case.one_process):
            assert recipe.model and recipe.train
            assert check_recipe(recipe.model, recipe.parallelism, recipe.train, recipe.data) == []
            assert num_parameters(recipe.model) < 200_000
            assert recipe.train.steps == 4


def test_ratios_that_decide_a_split_stay() -> None:
    llama = small_model("llama-70b: TP8+SP")  # 64 heads on 8 KV heads, tp 8
    assert (llama.num_heads, llama.num_kv_heads, llama.dim) == (16, 8, 128)
    shared = small_model("llama-70b: TP16", "parallelism.allow_cross_node_tp=true")
    assert (shared.num_heads, shared.num_kv_heads) == (8, 1)  # fewer KV heads than tp
    gpt = small_model("gpt-2: DP2")
    assert gpt.num_heads == gpt.num_kv_heads == 2
    qwen = small_model("qwen3-30b-a3b: FSDP2")  # heads wider than dim / num_heads
    assert qwen.dim != qwen.num_heads * qwen.head_dim


def test_layers_that_stages_do_not_divide_stay_uneven() -> None:
    assert small_model("llama-405b: PP16+TP8").num_layers == 3  # 126 on 16; here on 2
    assert small_model("gpt-3: PP8").num_layers == 8  # 96 on 8


def test_experts_are_shared_out_as_in_the_full_model() -> None:
    deepseek = small_model("deepseek-v3")
    assert deepseek.moe and deepseek.mla
    assert (deepseek.moe.num_experts, deepseek.moe.top_k) == (4, 2)  # 256 on ep 64; here ep 2
    assert (deepseek.moe.num_groups, deepseek.moe.top_k_groups) == (2, 1)
    assert deepseek.moe.num_shared_experts == deepseek.moe.num_dense_layers == 1
    assert deepseek.num_layers >= 4  # 2 stages x 2 virtual ones
    assert deepseek.mla.q_lora_rank == 12


def test_one_process_takes_the_micro_batch_of_all_data_ranks_together() -> None:
    (case,) = shrunk("tiny-moe: DP4+EP2")
    assert case.parallel.train and case.one_process.train
    assert (case.parallel.train.micro_batch, case.one_process.train.micro_batch) == (1, 4)
    assert case.parallel.train.global_batch == case.one_process.train.global_batch == 8
    assert case.one_process.parallelism.text == "DP1"


def test_parts_share_one_model_and_one_reference() -> None:
    cases = shrunk("llama-405b")
    assert len(cases) == 4
    assert len({repr(case.parallel.model) for case in cases}) == 1
    assert len({repr(case.one_process) for case in cases}) == 1
