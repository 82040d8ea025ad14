"""One process trains a mixture of experts as an implementation that shares no code with it does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.runtime import moe_reference, reference
from tests.runtime.exchanges import WaitCounter
from tests.runtime.harness import run_ranks, train_to_end
from tests.runtime.moe_models import MODELS, moe_model
from tests.runtime.plans import plan
from torch import Tensor

from parctl.planner.plan import Plan
from parctl.recipes.spec import ModelSpec
from parctl.runtime.model import initialize
from parctl.runtime.model.moe import Moe, grouped_linear
from parctl.runtime.model.router import Router
from parctl.runtime.model.transformer import Transformer

ONE_MICRO_BATCH = {"micro_batch": 8}


def reference_run(made: Plan, text: Path) -> tuple[list[tuple[float, float]], float, int]:
    model, spec = made.recipe.model, made.recipe.train
    assert model and spec
    weights = dict(Transformer(model).double().named_parameters())
    initialize.fill(weights, num_layers=model.num_layers, seed=spec.seed)
    initial = {name: value.detach() for name, value in weights.items()}
    run = moe_reference.Run(model)
    curve = moe_reference.train(initial, run, spec, reference.batches(spec, text))
    return curve, run.margin, run.dropped


@pytest.mark.parametrize("kind", MODELS)
def test_one_process_equals_the_reference(kind: str, text: Path, tmp_path: Path) -> None:
    made = plan(text, {}, model=MODELS[kind], train=ONE_MICRO_BATCH)
    ((expected, margin, dropped),) = run_ranks(reference_run, 1, tmp_path / "r", made, text)
    metrics = train_to_end(made, tmp_path / "run")
    print(f"{kind}: smallest routing margin {margin:.1e}, {dropped} choices dropped")
    assert margin > 1e-9, "a choice hangs on rounding: take another seed"
    assert len(metrics) == len(expected) == 4
    for ours, (loss, grad_norm) in zip(metrics, expected, strict=True):
        assert ours["loss"] == pytest.approx(loss, rel=1e-12), ours["step"]
        assert ours["grad_norm"] == pytest.approx(grad_norm, rel=1e-12), ours["step"]
    moe = made.recipe.model and made.recipe.model.moe
    assert moe and (dropped > 0) == (moe.capacity_factor is not None)
    assert (metrics[-1]["expert_dropped"] > 0) == (dropped > 0)
    assert 1 < metrics[-1]["expert_load"] <= moe.num_experts / moe.top_k


def router_of(model: ModelSpec, weight: Tensor) -> Router:
    router = Router(model)
    router.reset()
    with torch.no_grad():
        router.weight.copy_(weight)
    return router


def test_a_switch_keeps_its_score_and_two_choices_are_normalised() -> None:
    x = torch.zeros(1, 1, 32)
    x[0, 0, 0] = 1
    weight = torch.zeros(4, 32)
    weight[:, 0] = torch.tensor([1.0, 3.0, 2.0, 0.0])
    scores = weight[:, 0].softmax(0)
    one = router_of(moe_model(top_k=1), weight)(x)
    assert one.experts.tolist() == [[[1]]]
    assert torch.allclose(one.weights, scores[1].view(1, 1, 1))
    two = router_of(moe_model(top_k=2), weight)(x)
    assert two.experts.tolist() == [[[1, 2]]]
    assert torch.allclose(two.weights.flatten(), scores[[1, 2]] / scores[[1, 2]].sum())


def test_a_token_stays_in_its_best_groups() -> None:
    """Groups {0, 1}, {2, 3}, {4, 5}, {6, 7}; the best expert is in a group that is not open."""
    model = moe_model(num_experts=8, top_k=2, router="sigmoid", num_groups=4, top_k_groups=1)
    x = torch.zeros(1, 1, 32)
    x[0, 0, 0] = 1
    weight = torch.zeros(8, 32)
    weight[:, 0] = torch.tensor([4.0, -9.0, 3.0, 3.5, 0.0, 0.0, 1.0, 1.0])
    assert router_of(model, weight)(x).experts.tolist() == [[[3, 2]]]


def test_capacity_serves_first_choices_first() -> None:
    """Two tokens, four experts, top 2, factor 1: one seat per expert and sequence."""
    model = moe_model(capacity_factor=1.0)
    x = torch.eye(2, 32).unsqueeze(0)
    weight = torch.zeros(4, 32)
    weight[:, 0] = torch.tensor([3.0, 2.0, 0.0, 0.0])  # token 0: experts 0, 1
    weight[:, 1] = torch.tensor([0.0, 3.0, 2.0, 0.0])  # token 1: experts 1, 2
    # expert 1 is the first choice of token 1 and the second of token 0, which loses it
    assert router_of(model, weight)(x).experts.tolist() == [[[0, 4], [1, 2]]]
    # each sequence has its own seats
    pair = router_of(model, weight)(torch.cat((x, x)))
    assert pair.experts.tolist() == [[[0, 4], [1, 2]]] * 2


def test_the_bias_moves_towards_experts_with_little_load_and_leaves_weights_alone() -> None:
    model = moe_model(router="sigmoid", top_k=1, bias_rate=0.5)
    router = router_of(model, torch.zeros(4, 32))
    router.load.copy_(torch.tensor([[6.0, 2.0, 4.0, 4.0], [0.0] * 4]))
    router.finish_step()
    assert router.bias is not None
    assert router.bias.tolist() == [-0.5, 0.5, 0.0, 0.0]
    assert router.load.sum() == 0
    routing = router(torch.randn(1, 3, 32))
    assert routing.experts.flatten().tolist() == [1, 1, 1]
    assert routing.weights.flatten().tolist() == [0.5, 0.5, 0.5]


def load_after(recompute: bool) -> list[list[float]]:
    torch.manual_seed(1)
    moe = Moe(moe_model())
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter)
    moe.router.reset()
    x = torch.randn(2, 16, 32, requires_grad=True)
    if recompute:
        out: Any = torch.utils.checkpoint.checkpoint(moe, x, use_reentrant=False)
    else:
        out = moe(x)
    out.square().sum().backward()
    with torch.no_grad():
        moe(x)
    moe.train(False)(x)
    load: list[list[float]] = moe.router.load.tolist()
    return load


def test_load_counts_each_choice_of_training_once(tmp_path: Path) -> None:
    """Neither recomputation nor evaluation counts: 2 x 16 tokens have 64 choices."""
    (plain,) = run_ranks(load_after, 1, tmp_path / "a", False)
    (again,) = run_ranks(load_after, 1, tmp_path / "b", True)
    assert plain == again
    assert sum(plain[0]) == 64


def grouped_differences(dtype: torch.dtype, width: int) -> list[float]:
    """Largest differences from float64, of rows of `width` whole numbers."""
    differences = []
    for counts in ([3, 0, 4, 1], [0, 0, 0, 8], [0, 0, 0, 0]):
        results = []
        for own in (dtype, torch.float64):
            torch.manual_seed(0)
            x = torch.randint(-2, 3, (sum(counts), width)).to(own).requires_grad_()
            weight = torch.randint(-2, 3, (4, 8, width)).to(own).requires_grad_()
            out = grouped_linear(x, weight, torch.tensor(counts))
            (out * torch.arange(8).to(own)).sum().backward()  # type: ignore[no-untyped-call]
            assert x.grad is not None and weight.grad is not None
            results.append((out.detach(), x.grad, weight.grad))
        for ours, exact in zip(*results, strict=True):
            differences.append(float((ours - exact).abs().max()) if ours.numel() else 0.0)
    return differences


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [16, 12, 5])
def test_grouped_matmuls_equal_a_loop_also_where_an_expert_has_no_rows(
    width: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Rows of 12 bfloat16, and of 5 numbers, are no multiple of 16 bytes: a loop stands in.

    Whole numbers up to 256 are exact in bfloat16.
    """
    (differences,) = run_ranks(grouped_differences, 1, tmp_path, dtype, width)
    assert max(differences) == 0


def host_waits(model: ModelSpec) -> int:
    moe = Moe(model)
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter)
    moe.router.reset()
    counter = WaitCounter()
    with counter:
        moe(torch.randn(2, 16, 32)).sum().backward()
    return counter.count


def test_the_host_waits_only_to_know_how_much_is_dropped(tmp_path: Path) -> None:
    assert run_ranks(host_waits, 1, tmp_path / "a", MODELS["deepseek"]) == [0]
    assert run_ranks(host_waits, 1, tmp_path / "b", MODELS["switch"]) == [1]
