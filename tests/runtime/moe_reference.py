"""A mixture of experts written a second time: every expert on every token, one by one.

It shares nothing with the runtime's but the first weights. Losses are those of the papers, as whole
numbers of a batch, where the runtime attaches gradients. Beside the curve it returns the smallest
routing margin: how far the last score that was chosen lies above the first that was not. Rounding
changes a choice only where that is as small as the rounding.

Shapes: B batch, S sequence, E experts, k choices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from tests.runtime import reference
from torch import Tensor

from parctl.recipes.parameters import is_sparse
from parctl.recipes.spec import ModelSpec, TrainSpec

Weights = Mapping[str, Tensor]


@dataclass
class Run:
    """What one run of the reference keeps."""

    model: ModelSpec
    biases: dict[int, Tensor] = field(default_factory=dict)  # of layers, sigmoid router
    counts: dict[int, Tensor] = field(default_factory=dict)  # choices of the latest batch
    margin: float = float("inf")
    dropped: int = 0


def mixture(run: Run, w: Weights, layer: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return what layer `layer` adds to the stream, and its balance losses."""
    moe, name = run.model.moe, f"blocks.{layer}.moe"
    assert moe
    logits = x @ w[f"{name}.router.weight"].T
    if moe.router == "softmax":
        scores = logits.exp() / logits.exp().sum(-1, keepdim=True)
        shares = scores
    else:
        scores = 1 / (1 + (-logits).exp())
        shares = scores / scores.sum(-1, keepdim=True)
    chosen = choose(run, layer, scores.detach())
    kept = room(run, chosen)
    out = torch.zeros_like(x)
    picked = torch.stack(
        [scores[b, s, chosen[b, s]] for b in range(x.shape[0]) for s in range(x.shape[1])]
    ).view(chosen.shape)
    for choice in range(moe.top_k):
        weight = picked[..., choice]
        if moe.top_k > 1:
            weight = weight / picked.sum(-1)
        for expert in range(moe.num_experts):
            mine = ((chosen[..., choice] == expert) & kept[..., choice]).unsqueeze(-1)
            experts = {
                part: w.get(f"{name}.experts.{part}") for part in ("w_gate", "w_up", "w_down")
            }
            own = {part: stack[expert] for part, stack in experts.items() if stack is not None}
            answer = mlp(run.model, own, x)
            out = out + mine * moe.weight_scale * weight.unsqueeze(-1) * answer
    if moe.num_shared_experts:
        out = out + mlp(run.model, parts_of(w, f"{name}.shared"), x)
    counts = torch.stack([(chosen == expert).sum() for expert in range(moe.num_experts)])
    run.counts[layer] = counts
    often, mean = counts.double() / counts.sum(), shares.flatten(0, 1).mean(0)
    balance = moe.aux_loss * moe.num_experts * (often * mean).sum()
    return out, balance + moe.z_loss * logits.exp().sum(-1).log().square().mean()


def choose(run: Run, layer: int, scores: Tensor) -> Tensor:
    moe = run.model.moe
    assert moe
    if moe.router == "sigmoid":
        scores = scores + run.biases.setdefault(layer, torch.zeros(moe.num_experts).double())
    rows = []
    for row in scores.flatten(0, 1):
        size = moe.num_experts // moe.num_groups
        groups = [row[i * size : (i + 1) * size] for i in range(moe.num_groups)]
        best = [float(group.sort(descending=True).values[:2].sum()) for group in groups]
        ranking = sorted(range(moe.num_groups), key=lambda i: -best[i])
        if moe.top_k_groups < moe.num_groups:
            gap = best[ranking[moe.top_k_groups - 1]] - best[ranking[moe.top_k_groups]]
            run.margin = min(run.margin, gap)
        open_to = [
            (float(groups[group][i]), group * size + i)
            for group in ranking[: moe.top_k_groups]
            for i in range(size)
        ]
        order = sorted(open_to, reverse=True)
        if len(order) > moe.top_k:
            run.margin = min(run.margin, order[moe.top_k - 1][0] - order[moe.top_k][0])
        rows.append([expert for _, expert in order[: moe.top_k]])
    return torch.tensor(rows).view(*scores.shape[:2], moe.top_k)


def room(run: Run, chosen: Tensor) -> Tensor:
    """Which choices find room: first choices of a sequence before second ones."""
    moe = run.model.moe
    assert moe
    kept = torch.ones_like(chosen, dtype=torch.bool)
    if moe.capacity_factor is None:
        return kept
    exact = moe.capacity_factor * chosen.shape[1] * moe.top_k / moe.num_experts
    for b in range(chosen.shape[0]):
        seats = [-(-exact // 1)] * moe.num_experts
        for choice in range(moe.top_k):
            for s in range(chosen.shape[1]):
                expert = int(chosen[b, s, choice])
                kept[b, s, choice] = seats[expert] > 0
                seats[expert] -= 1
    run.dropped += int((~kept).sum())
    return kept


def mlp(model: ModelSpec, w: Weights, x: Tensor) -> Tensor:
    up = x @ w["w_up"].T
    if model.activation == "swiglu":
        gate = x @ w["w_gate"].T
        up = gate * torch.sigmoid(gate) * up
    else:
        assert model.activation == "relu"
        up = up.clamp(min=0)
    return up @ w["w_down"].T


def parts_of(w: Weights, name: str) -> dict[str, Tensor]:
    """Return the matrices of one MLP."""
    found = {part: w.get(f"{name}.{part}.weight") for part in ("w_gate", "w_up", "w_down")}
    return {part: matrix for part, matrix in found.items() if matrix is not None}


def loss_parts(run: Run, w: Weights, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the token loss and the sum of all balance losses."""
    model = run.model
    x, extra = w["embedding.weight"][tokens], torch.zeros((), dtype=torch.float64)
    for layer in range(model.num_layers):
        block = f"blocks.{layer}"
        h = reference.norm(w, model, f"{block}.attention_norm", x)
        x = x + reference.attention(w, model, f"{block}.attention", h)
        h = reference.norm(w, model, f"{block}.feed_forward_norm", x)
        if is_sparse(model, layer):
            out, balance = mixture(run, w, layer, h)
            extra = extra + balance
        else:
            out = mlp(model, parts_of(w, f"{block}.feed_forward"), h)
        x = x + out
    logits = reference.norm(w, model, "final_norm", x) @ w["head.weight"].T
    chances = logits.softmax(-1).gather(-1, targets.unsqueeze(-1))
    return -chances.log().mean(), extra


def train(
    weights: Weights, run: Run, spec: TrainSpec, batches: Sequence[tuple[Tensor, Tensor]]
) -> list[tuple[float, float]]:
    """Return token loss and gradient norm of every step, each of one micro-batch."""
    w = {name: value.double().requires_grad_() for name, value in weights.items()}
    means = {name: torch.zeros_like(value) for name, value in w.items()}
    squares = {name: torch.zeros_like(value) for name, value in w.items()}
    curve = []
    for step, (tokens, targets) in enumerate(batches, start=1):
        loss, extra = loss_parts(run, w, tokens, targets)
        gradients = torch.autograd.grad(loss + extra, list(w.values()))
        size = sum(float(gradient.square().sum()) for gradient in gradients) ** 0.5
        curve.append((loss.item(), size))
        optimizer, rate = spec.optimizer, reference.learning_rate(spec, step)
        b1, b2 = optimizer.betas
        for (name, value), gradient in zip(w.items(), gradients, strict=True):
            g = gradient * min(1.0, optimizer.max_grad_norm / size)
            means[name] = b1 * means[name] + (1 - b1) * g
            squares[name] = b2 * squares[name] + (1 - b2) * g * g
            mean, square = means[name] / (1 - b1**step), squares[name] / (1 - b2**step)
            decay = optimizer.weight_decay * value.detach() if value.dim() >= 2 else 0
            with torch.no_grad():
                value -= rate * (mean / (square.sqrt() + optimizer.eps) + decay)
        assert run.model.moe
        for layer, bias in run.biases.items():
            counts = run.counts[layer].double()
            bias += run.model.moe.bias_rate * torch.sign(counts.mean() - counts)
    return curve
