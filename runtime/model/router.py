"""The router of a mixture of experts: which experts a token uses, with what weights.

    softmax   scores = softmax(x W^T), the k best; renormalised when k > 1
              (k = 1: Switch, 2101.03961; k = 2: Mixtral, 2401.04088)
    sigmoid   scores = sigmoid(x W^T), the k best of scores + bias, weights from scores alone
              (DeepSeek-V3, 2412.19437)
    groups    only experts of the `top_k_groups` best of `num_groups` groups (2405.04434)

Nothing but a gradient leaves the balance losses: they are attached to the graph where they are
computed (`WithLoss`), so pipelines carry no extra outputs. With E experts, k per token, T tokens of
a micro-batch on all ranks, f_i = (times expert i was chosen) / (k T), P_i = mean score of i::

    aux_loss E sum_i f_i P_i + z_loss mean (log sum exp logits)^2

Both are weighted by T over the tokens of the step, like the token loss. f_i counts the tokens of
all ranks; the rest is a sum over tokens, of which each rank adds its own. So one process that takes
the same micro-batches as all ranks together computes the same gradient.

Expert capacity (GShard, 2006.16668) is counted per sequence: of the S k choices of a sequence, an
expert takes the first `capacity_factor` S k / E, first choices before second ones, then by
position. What is dropped does not depend on the layout, nor on the other sequences.

Shapes: B batch, S sequence (this rank's part under SP), D dim, E experts, k choices.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from parctl.recipes.spec import ModelSpec
from parctl.runtime.model.linear import Exchange, local, nothing
from parctl.runtime.parallel.collectives import all_reduce


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """`experts` is `num_experts` where a choice was dropped."""

    experts: Tensor  # [B, S, k]
    weights: Tensor  # [B, S, k]


class Router(nn.Module):
    """Maps the stream `[B, S, D]` to a `Routing`, in float32 at least."""

    # Set by `runtime.parallel.expert_parallel`.
    token_groups: tuple[dist.ProcessGroup, ...] = ()  # ranks that hold other tokens of the batch
    tokens_per_step = 1  # that the token loss is divided by

    bias: Tensor | None
    load: Tensor  # [2, E], of the step so far, on all ranks: choices, and of them the dropped
    total: Tensor  # [E], choices of the steps of this attempt

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        assert model.moe
        self.moe = model.moe
        # whole sequences from this rank's part of them, and back; on integers, in token order
        self.gather: Exchange = nothing
        self.own: Exchange = nothing
        num_experts = self.moe.num_experts
        self.weight = nn.Parameter(torch.empty(num_experts, model.dim))
        bias = torch.empty(num_experts) if self.moe.router == "sigmoid" else None
        self.register_buffer("bias", bias)
        self.register_buffer("load", torch.empty(2, num_experts), persistent=False)
        self.register_buffer("total", torch.empty(num_experts), persistent=False)

    def reset(self) -> None:
        """Give the buffers their first values."""
        for buffer in self.buffers():
            buffer.zero_()

    def forward(self, x_BSD: Tensor) -> Routing:
        dtype = torch.promote_types(x_BSD.dtype, torch.float32)
        logits_BSE = F.linear(x_BSD.to(dtype), local(self.weight).to(dtype))
        softmax = self.moe.router == "softmax"
        scores_BSE = logits_BSE.softmax(dim=-1) if softmax else logits_BSE.sigmoid()
        chosen_BSk = self.choose(scores_BSE.detach())
        kept_BSk = self.within_capacity(chosen_BSk)
        if self.training and torch.is_grad_enabled():
            scores_BSE = self.balance(logits_BSE, scores_BSE, chosen_BSk, kept_BSk)
        weights_BSk = scores_BSE.gather(-1, chosen_BSk)
        if self.moe.top_k > 1:
            weights_BSk = weights_BSk / weights_BSk.sum(dim=-1, keepdim=True)
        return Routing(
            experts=chosen_BSk.masked_fill(~kept_BSk, self.moe.num_experts),
            weights=weights_BSk * self.moe.weight_scale,
        )

    def choose(self, scores_BSE: Tensor) -> Tensor:
        """Pick the experts of every token, `[B, S, k]`, best first."""
        moe = self.moe
        if self.bias is not None:
            scores_BSE = scores_BSE + self.bias
        if moe.num_groups > 1:
            grouped = scores_BSE.view(*scores_BSE.shape[:-1], moe.num_groups, -1)
            # DeepSeek-V3 rates a group by its two best experts, DeepSeek-V2 by its best
            best = min(2 if moe.router == "sigmoid" else 1, grouped.shape[-1])
            rating = grouped.topk(best, dim=-1).values.sum(dim=-1)
            groups = rating.topk(moe.top_k_groups, dim=-1).indices
            closed = torch.ones_like(rating, dtype=torch.bool).scatter(-1, groups, False)
            scores_BSE = grouped.masked_fill(closed.unsqueeze(-1), -math.inf).flatten(-2)
        return scores_BSE.topk(moe.top_k, dim=-1).indices

    def within_capacity(self, chosen_BSk: Tensor) -> Tensor:
        """Say which choices find room in their expert, `[B, S, k]`."""
        if self.moe.capacity_factor is None:
            return torch.ones_like(chosen_BSk, dtype=torch.bool)
        whole_BSk = self.gather(chosen_BSk)
        batch, num_tokens, top_k = whole_BSk.shape
        even = num_tokens * top_k / self.moe.num_experts
        capacity = math.ceil(self.moe.capacity_factor * even)
        queue_BN, order_BN = whole_BSk.transpose(1, 2).reshape(batch, -1).sort(dim=1, stable=True)
        counts_BE = count(queue_BN, self.moe.num_experts)
        first_BE = counts_BE.cumsum(dim=1) - counts_BE
        place_BN = torch.arange(queue_BN.shape[1], device=queue_BN.device) - first_BE.gather(
            1, queue_BN
        )
        kept_BN = torch.empty_like(place_BN, dtype=torch.bool)
        kept_BN.scatter_(1, order_BN, place_BN < capacity)
        return self.own(kept_BN.view(batch, top_k, num_tokens).transpose(1, 2))

    def balance(
        self, logits_BSE: Tensor, scores_BSE: Tensor, chosen_BSk: Tensor, kept_BSk: Tensor
    ) -> Tensor:
        """Return the scores with the balance losses attached, which also record the load."""
        moe = self.moe
        chosen_E = count(chosen_BSk.flatten(), moe.num_experts)
        kept = chosen_BSk.masked_fill(~kept_BSk, moe.num_experts).flatten()
        dropped_E = chosen_E - count(kept, moe.num_experts + 1)[:-1]
        load_2E = torch.stack((chosen_E, dropped_E)).to(scores_BSE.dtype)
        for group in self.token_groups:
            load_2E = all_reduce(load_2E, group)
        share_E = load_2E[0] / load_2E[0].sum()
        if moe.router == "sigmoid":
            probabilities_BSE = scores_BSE / scores_BSE.sum(dim=-1, keepdim=True)
        else:
            probabilities_BSE = scores_BSE
        even = moe.num_experts * (probabilities_BSE.sum(dim=(0, 1)) * share_E).sum()
        size = logits_BSE.logsumexp(dim=-1).square().sum()
        loss = (moe.aux_loss * even + moe.z_loss * size) / self.tokens_per_step
        with_loss: Tensor = WithLoss.apply(  # type: ignore[no-untyped-call]
            scores_BSE, loss, load_2E, self.load
        )
        return with_loss

    def finish_step(self) -> None:
        """Move the bias towards balance by the load of the step (2408.15664), and forget it."""
        load_E = self.load[0]
        self.total += load_E
        if self.bias is not None:
            self.bias.add_((load_E.mean() - load_E).sign(), alpha=self.moe.bias_rate)
        self.load.zero_()


def count(values: Tensor, num_values: int) -> Tensor:
    """How often 0 ... num_values-1 occur along the last dim. `bincount` would wait for the device.

    >>> count(torch.tensor([0, 2, 2]), 3)
    tensor([1, 0, 2])
    """
    counts = values.new_zeros(*values.shape[:-1], num_values)
    return counts.scatter_add(-1, values, torch.ones_like(values))


class WithLoss(torch.autograd.Function):
    """forward: scores as they are; backward: adds the gradient of `loss`, and `load` to `total`.

    A backward pass happens once for each micro-batch, a forward pass twice under recomputation.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, loss: Tensor, load: Tensor, total: Tensor) -> Tensor:
        ctx.load, ctx.total, ctx.like = load, total, loss
        return scores.view_as(scores)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        ctx.total.add_(ctx.load)
        return gradients[0], torch.ones_like(ctx.like), None, None
