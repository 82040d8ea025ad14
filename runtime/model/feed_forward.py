"""The MLP of a block, and the activation that it shares with experts.

Shapes: B batch, S sequence, D dim, F ffn_dim. Under tensor parallelism F is this rank's part.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from parctl.recipes.spec import ModelSpec
from parctl.runtime.model.linear import Exchange, Linear, nothing


def activate(activation: str, up: Tensor, gate: Tensor | None) -> Tensor:
    """Apply a model's activation to the first projection; SwiGLU (2002.05202) has two."""
    match activation:
        case "swiglu":
            assert gate is not None
            return F.silu(gate) * up
        case "gelu":
            return F.gelu(up, approximate="tanh")
        case "relu":
            return F.relu(up)
        case "squared-relu":
            return F.relu(up).square()
    raise AssertionError(activation)


class FeedForward(nn.Module):
    """The MLP, gated or plain."""

    def __init__(self, model: ModelSpec, ffn_dim: int) -> None:
        super().__init__()
        self.activation = model.activation
        self.enter: Exchange = nothing
        gated = model.activation == "swiglu"
        self.w_gate = Linear(model.dim, ffn_dim, bias=model.bias) if gated else None
        self.w_up = Linear(model.dim, ffn_dim, bias=model.bias)
        self.w_down = Linear(ffn_dim, model.dim, bias=model.bias)

    def forward(self, x_BSD: Tensor) -> Tensor:
        x_BSD = self.enter(x_BSD)
        gate_BSF = None if self.w_gate is None else self.w_gate(x_BSD)
        out: Tensor = self.w_down(activate(self.activation, self.w_up(x_BSD), gate_BSF))
        return out
