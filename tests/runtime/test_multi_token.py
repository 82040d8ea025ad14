"""Multi-token prediction: its arithmetic written a second time, its splits as one process."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.runtime import reference
from tests.runtime.harness import run_ranks, train_to_end
from tests.runtime.plans import LLAMA, plan
from torch import Tensor

from parctl.recipes.parameters import num_parameters
from parctl.recipes.spec import ModelSpec
from parctl.runtime.data.batches import shuffled
from parctl.runtime.model.initialize import fill
from parctl.runtime.model.loss import IGNORED
from parctl.runtime.model.transformer import Transformer

ONE = replace(LLAMA, num_mtp_layers=1)
TWO = replace(LLAMA, num_mtp_layers=2, qk_norm=False)
TIED = replace(ONE, tied_embeddings=True)


def block(w: Mapping[str, Tensor], model: ModelSpec, name: str, x: Tensor) -> Tensor:
    normed = reference.norm(w, model, f"{name}.attention_norm", x)
    x = x + reference.attention(w, model, f"{name}.attention", normed)
    h = reference.norm(w, model, f"{name}.feed_forward_norm", x)
    gate = reference.linear(w, f"{name}.feed_forward.w_gate", h)
    up = reference.linear(w, f"{name}.feed_forward.w_up", h)
    return x + reference.linear(w, f"{name}.feed_forward.w_down", gate * torch.sigmoid(gate) * up)


def logits_by_hand(w: Mapping[str, Tensor], model: ModelSpec, tokens_BT: Tensor) -> list[Tensor]:
    """Return the logits of the main model and of every module, for T - modules tokens."""
    num_tokens = tokens_BT.shape[1] - model.num_mtp_layers
    x = w["embedding.weight"][tokens_BT[:, :num_tokens]]
    for layer in range(model.num_layers):
        x = block(w, model, f"blocks.{layer}", x)
    h = reference.norm(w, model, "final_norm", x)
    head = w["embedding.weight" if model.tied_embeddings else "head.weight"]
    found = [h @ head.T]
    for depth in range(model.num_mtp_layers):
        name = f"mtp.{depth}"
        known = w["embedding.weight"][tokens_BT[:, depth + 1 : depth + 1 + num_tokens]]
        both = (
            reference.norm(w, model, f"{name}.stream_norm", h),
            reference.norm(w, model, f"{name}.embedding_norm", known),
        )
        h = reference.linear(w, f"{name}.projection", torch.cat(both, dim=-1))
        h = block(w, model, f"{name}.block", h)
        found.append(reference.norm(w, model, f"{name}.final_norm", h) @ head.T)
    return found


@pytest.mark.parametrize("model", [ONE, TWO, TIED], ids=["one", "two", "tied"])
def test_every_depth_equals_the_second_writing(model: ModelSpec) -> None:
    module = Transformer(model).double()
    weights = dict(module.named_parameters())
    fill(weights, num_layers=2, seed=3)
    assert sum(weight.numel() for weight in weights.values()) == num_parameters(model)
    depth = model.num_mtp_layers
    tokens_BT = torch.randint(256, (2, 12 + 1 + depth), generator=torch.Generator().manual_seed(0))
    tokens, following = tokens_BT[:, :12], tokens_BT[:, 1:].unfold(1, 1 + depth, 1)
    assert torch.equal(following[0, 0], tokens_BT[0, 1 : 2 + depth])
    found = module(tokens, following=following).chunk(1 + depth)
    expected = logits_by_hand(weights, model, tokens_BT[:, : 12 + depth])
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)
    module.eval()
    torch.testing.assert_close(module(tokens, following=following), expected[0])


def first_loss(text: Path, model: ModelSpec) -> float:
    """The loss of the first step of `plan(text, {}, model=model)`, without the runtime's loop."""
    spec = plan(text, {}).recipe.train
    assert spec is not None
    module = Transformer(model).double()
    weights = dict(module.named_parameters())
    fill(weights, num_layers=2, seed=spec.seed)
    depth, stream = model.num_mtp_layers, [*text.read_bytes(), 0]
    tokens = torch.tensor(stream[: len(stream) - len(stream) // 10])
    sequences = tokens.unfold(0, spec.seq_len + 1 + depth, spec.seq_len)
    order = shuffled(torch.arange(8).numpy(), len(sequences), spec.seed * 1_000_003)
    rows = sequences[torch.from_numpy(order)]
    found = logits_by_hand(weights, model, rows[:, :-1])
    losses = []
    for ahead, logits in enumerate(found, start=1):
        targets = rows[:, ahead : ahead + spec.seq_len]
        chances = logits.log_softmax(dim=-1).gather(-1, targets.unsqueeze(-1))
        losses.append(-chances.mean().item())
    return losses[0] + 0.3 / depth * sum(losses[1:])


def test_the_loss_is_weighted_as_the_recipe_says(text: Path, tmp_path: Path) -> None:
    (expected,) = run_ranks(first_loss, 1, tmp_path / "by-hand", text, TWO)
    metrics = train_to_end(plan(text, {}, model=TWO), tmp_path / "run")
    assert metrics[0]["loss"] == pytest.approx(expected, rel=1e-12)


def test_targets_that_do_not_count_are_read_as_token_0() -> None:
    module = Transformer(ONE).double()
    fill(dict(module.named_parameters()), num_layers=2, seed=3)
    following = torch.full((1, 4, 2), IGNORED)
    assert module(torch.zeros(1, 4, dtype=torch.long), following=following).isfinite().all()


FORMS: dict[str, tuple[ModelSpec, dict[str, int], dict[str, Any]]] = {
    "fsdp2": (TWO, {"fsdp": 2}, {}),
    "dp2": (TWO, {"dp": 2}, {}),
    "tp2": (TWO, {"tp": 2}, {}),
    "tp2+sp x fsdp2": (TWO, {"fsdp": 2, "tp": 2}, {"sp": True}),
    "pp2": (TWO, {"pp": 2}, {}),
    "pp2 x tp2+sp": (TWO, {"pp": 2, "tp": 2}, {"sp": True}),
    "ring2": (TWO, {"cp": 2}, {}),
    "ring2 x tp2+sp": (TWO, {"cp": 2, "tp": 2}, {"sp": True}),
    "full recompute": (TWO, {"fsdp": 2}, {"train": {"recompute": "full"}}),
    "selective recompute tp2+sp": (
        TWO,
        {"tp": 2},
        {"sp": True, "train": {"recompute": "selective"}},
    ),
    "tied pp2": (TIED, {"pp": 2}, {}),
    "tied fsdp2": (TIED, {"fsdp": 2}, {}),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_split_equals_one_process(form: str, text: Path, tmp_path: Path) -> None:
    model, axes, options = FORMS[form]
    metrics = train_to_end(plan(text, axes, model=model, **options), tmp_path / "split")
    expected = train_to_end(plan(text, {}, model=model), tmp_path / "one")
    for ours, one in zip(metrics, expected, strict=True):
        for key in ("loss", "grad_norm"):
            assert ours[key] == pytest.approx(one[key], rel=1e-10), (ours["step"], key)
