"""The same training written a second time, in plain torch and on one page, to compare with.

It shares nothing with the runtime but the first weights and the order of sequences. Rotations are
complex products, heads are repeated one by one, AdamW and its schedule are the papers' formulas.

Shapes: B batch, N heads, S sequence, H head_dim.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from parctl.recipes.spec import ModelSpec, TrainSpec
from parctl.runtime.data.batches import shuffled

Weights = Mapping[str, Tensor]


def logits(w: Weights, model: ModelSpec, tokens_BS: Tensor) -> Tensor:
    x = w["embedding.weight"][tokens_BS]
    if "positions.weight" in w:
        x = x + w["positions.weight"][: tokens_BS.shape[1]]
    for layer in range(model.num_layers):
        block = f"blocks.{layer}"
        x = x + attention(
            w, model, f"{block}.attention", norm(w, model, f"{block}.attention_norm", x)
        )
        h = norm(w, model, f"{block}.feed_forward_norm", x)
        up = linear(w, f"{block}.feed_forward.w_up", h)
        if model.activation == "swiglu":
            gate = linear(w, f"{block}.feed_forward.w_gate", h)
            up = gate * torch.sigmoid(gate) * up
        else:
            up = 0.5 * up * (1 + torch.tanh((2 / math.pi) ** 0.5 * (up + 0.044715 * up**3)))
        x = x + linear(w, f"{block}.feed_forward.w_down", up)
    head = w["embedding.weight" if model.tied_embeddings else "head.weight"]
    return norm(w, model, "final_norm", x) @ head.T


def attention(w: Weights, model: ModelSpec, name: str, x: Tensor) -> Tensor:
    heads = []
    for head in range(model.num_heads):
        shared = head * model.num_kv_heads // model.num_heads
        q, k, v = (
            linear(w, f"{name}.{part}", x)[..., i * model.head_dim : (i + 1) * model.head_dim]
            for part, i in (("wq", head), ("wk", shared), ("wv", shared))
        )
        if model.positions == "rope":
            q, k = turn(q, model.rope_theta), turn(k, model.rope_theta)
        scores = q @ k.mT / model.head_dim**0.5
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        heads.append(scores.masked_fill(future, -math.inf).softmax(-1) @ v)
    return linear(w, f"{name}.wo", torch.cat(heads, dim=-1))


def turn(x_BSH: Tensor, theta: float) -> Tensor:
    half = x_BSH.shape[-1] // 2
    frequencies = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.outer(torch.arange(x_BSH.shape[1], dtype=torch.float64), frequencies)
    plane = torch.complex(x_BSH[..., :half], x_BSH[..., half:]) * torch.exp(1j * angles)
    return torch.cat((plane.real, plane.imag), dim=-1)


def norm(w: Weights, model: ModelSpec, name: str, x: Tensor) -> Tensor:
    if model.norm == "layernorm":
        x = x - x.mean(-1, keepdim=True)
    scaled = x / (x.square().mean(-1, keepdim=True) + model.norm_eps).sqrt() * w[f"{name}.weight"]
    return scaled + w.get(f"{name}.bias", 0)


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)


def batches(spec: TrainSpec, text: Path) -> list[tuple[Tensor, Tensor]]:
    """The global batches of a run on the bytes of `text`, of which a tenth is held out."""
    stream = [*text.read_bytes(), 0]
    tokens = torch.tensor(stream[: len(stream) - len(stream) // 10])
    num = (len(tokens) - 1) // spec.seq_len
    order = shuffled(torch.arange(num).numpy(), num, spec.seed * 1_000_003)
    rows = torch.stack(
        [tokens[i * spec.seq_len : (i + 1) * spec.seq_len + 1] for i in order.tolist()]
    )
    whole = torch.split(rows, spec.global_batch)[: spec.steps]
    return [(batch[:, :-1], batch[:, 1:]) for batch in whole]


def train(
    weights: Weights, model: ModelSpec, spec: TrainSpec, batches: Sequence[tuple[Tensor, Tensor]]
) -> list[tuple[float, float]]:
    """Return loss and gradient norm of every step. A batch is tokens and targets, `[B, S]`."""
    w = {name: value.double().requires_grad_() for name, value in weights.items()}
    means = {name: torch.zeros_like(value) for name, value in w.items()}
    squares = {name: torch.zeros_like(value) for name, value in w.items()}
    curve = []
    for step, (tokens_BS, targets_BS) in enumerate(batches, start=1):
        chances = logits(w, model, tokens_BS).softmax(-1)
        loss = -chances.gather(-1, targets_BS.unsqueeze(-1)).log().mean()
        gradients = torch.autograd.grad(loss, list(w.values()))
        size = sum(float(gradient.square().sum()) for gradient in gradients) ** 0.5
        curve.append((loss.item(), size))
        optimizer, rate = spec.optimizer, learning_rate(spec, step)
        b1, b2 = optimizer.betas
        for (name, value), gradient in zip(w.items(), gradients, strict=True):
            g = gradient * min(1.0, optimizer.max_grad_norm / size)
            means[name] = b1 * means[name] + (1 - b1) * g
            squares[name] = b2 * squares[name] + (1 - b2) * g * g
            mean, square = means[name] / (1 - b1**step), squares[name] / (1 - b2**step)
            decay = optimizer.weight_decay * value.detach() if value.dim() == 2 else 0
            with torch.no_grad():
                value -= rate * (mean / (square.sqrt() + optimizer.eps) + decay)
    return curve


def learning_rate(spec: TrainSpec, step: int) -> float:
    optimizer = spec.optimizer
    if step < optimizer.warmup_steps:
        return optimizer.lr * step / optimizer.warmup_steps
    turned = math.pi * (step - optimizer.warmup_steps) / (spec.steps - optimizer.warmup_steps)
    return optimizer.min_lr + (optimizer.lr - optimizer.min_lr) * (1 + math.cos(turned)) / 2
