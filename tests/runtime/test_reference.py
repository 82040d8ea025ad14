"""One process trains as an implementation that shares no code with it does, in float64 to 1e-12.

Other tests compare every parallel form with one process; here is what that one stands on.
"""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.runtime import reference
from tests.runtime.harness import run_ranks, train_to_end
from tests.runtime.plans import GPT, LLAMA, plan

from parctl.planner.plan import Plan
from parctl.recipes.spec import ModelSpec
from parctl.runtime.model import initialize
from parctl.runtime.model.transformer import Transformer

MODELS = {
    "llama": LLAMA,
    "llama, odd sizes": replace(LLAMA, dim=20, head_dim=6, num_kv_heads=1, ffn_dim=33),
    "gpt": GPT,
}


def reference_curve(made: Plan, text: Path) -> list[tuple[float, float]]:
    model, spec = made.recipe.model, made.recipe.train
    assert model and spec
    module = Transformer(model).double()
    weights = dict(module.named_parameters())
    initialize.fill(weights, num_layers=model.num_layers, seed=spec.seed)

    initial = {name: value.detach() for name, value in weights.items()}
    return reference.train(initial, model, spec, reference.batches(spec, text))


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_one_process_equals_the_reference(model: ModelSpec, text: Path, tmp_path: Path) -> None:
    made = plan(text, {}, model=model)
    (expected,) = run_ranks(reference_curve, 1, tmp_path / "reference", made, text)
    metrics = train_to_end(made, tmp_path / "run")
    assert len(metrics) == len(expected) == 4
    for ours, (loss, grad_norm) in zip(metrics, expected, strict=True):
        assert ours["loss"] == pytest.approx(loss, rel=1e-12), ours["step"]
        assert ours["grad_norm"] == pytest.approx(grad_norm, rel=1e-12), ours["step"]
