"""A mixture of experts in place of the MLP.

    x --router--> choices, weights
    x --sort by expert--> rows --experts--> rows --sort back, weigh, add up--> out

Dropless unless the model has a capacity: experts take however many rows come (2211.15841), by one
grouped matmul per projection. `enter`, `leave` and `dispatch` are where ranks exchange rows; on one
device nothing is exchanged (`runtime.parallel.expert_parallel`).

Shapes: B batch, S sequence, D dim, F expert_ffn_dim, E experts, k choices per token, T = B S
tokens, R rows (chosen pairs of token and expert).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from parctl.recipes.spec import ModelSpec
from parctl.runtime.model.feed_forward import FeedForward, activate
from parctl.runtime.model.linear import Exchange, local, nothing
from parctl.runtime.model.router import Router, count

# Given tokens, which of them each row is, sorted by expert, and how many rows are each expert's:
# what the experts answer to so many rows. Rows that no expert takes are at the end.
Dispatch = Callable[["Experts", Tensor, Tensor, Tensor], Tensor]


class Experts(nn.Module):
    """Routed experts, stacked: `w_up[e]` is that of expert e."""

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        assert model.moe
        self.activation = model.activation
        self.drops = model.moe.capacity_factor is not None
        inner = (model.moe.num_experts, model.moe.expert_ffn_dim, model.dim)
        outer = (model.moe.num_experts, model.dim, model.moe.expert_ffn_dim)
        gated = model.activation == "swiglu"
        self.w_gate = nn.Parameter(torch.empty(inner)) if gated else None
        self.w_up = nn.Parameter(torch.empty(inner))
        self.w_down = nn.Parameter(torch.empty(outer))

    def forward(self, x_RD: Tensor, counts_E: Tensor) -> Tensor:
        """Rows are sorted by expert, of which `counts_E` are here; E is this rank's experts."""
        up_RF = grouped_linear(x_RD, self.w_up, counts_E)
        gate_RF = None if self.w_gate is None else grouped_linear(x_RD, self.w_gate, counts_E)
        return grouped_linear(activate(self.activation, up_RF, gate_RF), self.w_down, counts_E)


def grouped_linear(x_RI: Tensor, weight: Tensor, counts_E: Tensor) -> Tensor:
    """Multiply the rows of each expert by its own weight `[E, O, I]`: `[R, I]` to `[R, O]`."""
    weight_EOI = local(weight).to(x_RI.dtype)  # experts that FSDP does not manage are stored wider
    # grouped_mm wants rows of both factors to begin at multiples of 16 bytes
    aligned = all(size * x_RI.element_size() % 16 == 0 for size in weight_EOI.shape[1:])
    if x_RI.dtype != torch.float64 and len(x_RI) > 0 and aligned:
        ends_E = counts_E.cumsum(dim=0, dtype=torch.int32)
        return F.grouped_mm(x_RI, weight_EOI.transpose(-2, -1), offs=ends_E)
    # grouped_mm knows no float64, and its backward pass fails for no rows at all
    rows = torch.split(x_RI, counts_E.tolist())
    return torch.cat([F.linear(r, w) for r, w in zip(rows, weight_EOI.unbind(), strict=True)])


def on_this_device(experts: Experts, x_TD: Tensor, tokens_R: Tensor, counts_E: Tensor) -> Tensor:
    """The dispatch of a rank that holds all experts. The host waits only where rows are dropped."""
    if experts.drops:
        tokens_R = tokens_R[: int(counts_E.sum())]
    out: Tensor = experts(x_TD.index_select(0, tokens_R), counts_E)
    return out


class Moe(nn.Module):
    """Router, routed experts, and shared experts that every token uses (2401.06066)."""

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        assert model.moe
        self.moe = model.moe
        self.router = Router(model)
        self.experts = Experts(model)
        # side by side in one MLP
        width = self.moe.num_shared_experts * self.moe.expert_ffn_dim
        self.shared = FeedForward(model, width) if width else None
        self.enter: Exchange = nothing  # of tokens and of their weights
        self.enter_choices: Exchange = nothing  # the same for integers
        self.leave: Exchange = nothing
        self.dispatch: Dispatch = on_this_device
        # where places are dealt out otherwise: the expert at each place, the place of each expert
        self.order: tuple[int, ...] | None = None
        self.places: Tensor | None = None  # [E + 1], the last for dropped choices

    def reset(self) -> None:
        """Give what is no parameter its first values, once there is memory."""
        self.router.reset()
        if self.order is not None:
            places = sorted(range(len(self.order)), key=self.order.__getitem__)
            self.places = torch.tensor([*places, len(places)], device=self.router.weight.device)

    def forward(self, x_BSD: Tensor) -> Tensor:
        routing = self.router(x_BSD)
        tokens_BSD = self.enter(x_BSD)
        out_BSD = self.leave(
            self.route(
                tokens_BSD.flatten(0, 1),
                self.enter_choices(routing.experts).flatten(0, 1),
                self.enter(routing.weights.to(x_BSD.dtype)).flatten(0, 1),
            ).view_as(tokens_BSD)
        )
        return out_BSD if self.shared is None else out_BSD + self.shared(x_BSD)

    def route(self, x_TD: Tensor, experts_Tk: Tensor, weights_Tk: Tensor) -> Tensor:
        """Send every token to its experts and add up what they answer, `[T, D]`."""
        num_experts, top_k = self.moe.num_experts, experts_Tk.shape[1]
        if self.places is not None:
            experts_Tk = self.places[experts_Tk]
        order = experts_Tk.flatten().argsort(stable=True)  # the dropped ones are at the end
        counts_E = count(experts_Tk.flatten(), num_experts + 1)[:-1]
        answers_RD = self.dispatch(self.experts, x_TD, order // top_k, counts_E)
        answers_ND = place_rows(answers_RD, order[: len(answers_RD)], len(order))
        return torch.bmm(
            weights_Tk.unsqueeze(1), answers_ND.view(-1, top_k, x_TD.shape[1])
        ).squeeze(1)


def place_rows(x_RD: Tensor, places: Tensor, num_places: int) -> Tensor:
    """Put row i at `places[i]` of `num_places` rows, zeros elsewhere."""
    placed: Tensor = PlaceRows.apply(x_RD, places, num_places)  # type: ignore[no-untyped-call]
    return placed


class PlaceRows(torch.autograd.Function):
    """Keeps the places only; torch's `index_copy` would keep the rows for its backward pass."""

    @staticmethod
    def forward(ctx: Any, x_RD: Tensor, places: Tensor, num_places: int) -> Tensor:
        ctx.save_for_backward(places)
        return x_RD.new_zeros(num_places, x_RD.shape[1]).index_copy_(0, places, x_RD)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return gradients[0].index_select(0, places), None, None
