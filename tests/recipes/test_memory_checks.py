"""What a recipe may not ask for of memory, branches and streams, with the way out."""

import pytest

from parctl.errors import RecipeError
from parctl.recipes.loader import load_recipe

PARALLEL = "model.parallel_blocks=true"


@pytest.mark.parametrize(
    ("line", "overrides", "message"),
    [
        ("tiny-llama: OP2", [], "the blocks of tiny-llama have no branches side by side"),
        ("tiny-llama: OP4", [PARALLEL], "found 4, but a block has 2 branches"),
        ("tiny-llama: DP2", ["train.streams=2"], "have no branches side by side"),
        (
            "tiny-llama: DP2",
            ["train.recompute=selective", "train.offload_activations=true"],
            "no layer recomputes from its input",
        ),
        ("tiny-llama: DP2", ["parallelism.reshard=never"], "the axis it belongs to, fsdp"),
    ],
)
def test_it_is_refused_with_the_reason(line: str, overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(line, overrides)
    assert message in caught.value.message


def test_one_layer_that_recomputes_from_its_input_is_enough() -> None:
    modes = "train.recompute_layers=[none, partitioned]"
    recipe = load_recipe("tiny-llama: TP2", [modes, "train.offload_activations=true"])
    assert recipe.train is not None
    assert [recipe.train.recompute_of(layer) for layer in range(3)] == [
        "none",
        "partitioned",
        "none",
    ]


def test_branches_and_streams_are_taken() -> None:
    recipe = load_recipe("tiny-llama: OP2+DP2", [PARALLEL, "train.streams=2"])
    assert recipe.parallelism.operator == 2 and recipe.parallelism.text == "DP2+OP2"
