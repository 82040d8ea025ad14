"""The runtime builds every shipped model with exactly the parameters that recipes count."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.runtime.harness import run_ranks

from parctl.recipes.parameters import num_parameters
from parctl.recipes.presets import model_preset, preset_names
from parctl.recipes.spec import ModelSpec
from parctl.runtime.model.transformer import Transformer
from parctl.runtime.supported import unbuilt_model_parts

BUILT = [name for name in preset_names() if not unbuilt_model_parts(model_preset(name))]


def built_parameters(model: ModelSpec) -> int:
    with torch.device("meta"):
        stage = Transformer(model)
    # counts take in the sigmoid router's bias, as published checkpoints hold it
    biases = (value for name, value in stage.named_buffers() if name.endswith("router.bias"))
    return sum(value.numel() for value in (*stage.parameters(), *biases))


def test_every_preset_is_built() -> None:
    assert list(preset_names()) == BUILT


def count_all() -> dict[str, int]:
    return {name: built_parameters(model_preset(name)) for name in BUILT}


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Parameters of every preset, counted in one fork."""
    (found,) = run_ranks(count_all, 1, tmp_path_factory.mktemp("counts"))
    result: dict[str, int] = found
    return result


@pytest.mark.parametrize("name", BUILT)
def test_a_preset_is_built_with_exactly_its_parameters(name: str, counts: dict[str, int]) -> None:
    assert counts[name] == num_parameters(model_preset(name))


def test_token_prediction_ahead_is_counted_too(tmp_path: Path) -> None:
    model = replace(model_preset("deepseek-v3"), num_mtp_layers=1)
    assert run_ranks(built_parameters, 1, tmp_path, model) == [num_parameters(model)]
