"""Self-attention with grouped key and value heads (2305.13245).

Shapes: B batch, S sequence, D dim, N query heads, K key/value heads, H head_dim. Under tensor
parallelism N and K count this rank's heads; S is always the whole sequence.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from parctl.recipes.spec import ModelSpec
from parctl.runtime.dropout import own_stream
from parctl.runtime.linear import Exchange, Linear, nothing
from parctl.runtime.rope import rotate

Rotation = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Causal self-attention."""

    tp_rank = 0  # set when heads are split: dropout then draws from this rank's own stream

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        self.head_dim = model.head_dim
        self.dropout = model.dropout
        bias = model.bias or model.qkv_bias
        query_dim = model.num_heads * model.head_dim
        key_dim = model.num_kv_heads * model.head_dim
        self.enter: Exchange = nothing
        self.wq = Linear(model.dim, query_dim, bias=bias)
        self.wk = Linear(model.dim, key_dim, bias=bias)
        self.wv = Linear(model.dim, key_dim, bias=bias)
        self.wo = Linear(query_dim, model.dim, bias=model.bias)

    def forward(self, x_BSD: Tensor, rotation: Rotation | None) -> Tensor:
        x_BSD = self.enter(x_BSD)
        batch, num_tokens, _ = x_BSD.shape
        q_BSNH = self.wq(x_BSD).view(batch, num_tokens, -1, self.head_dim)
        k_BSKH = self.wk(x_BSD).view(batch, num_tokens, -1, self.head_dim)
        v_BSKH = self.wv(x_BSD).view(batch, num_tokens, -1, self.head_dim)
        if rotation is not None:
            q_BSNH, k_BSKH = rotate(q_BSNH, *rotation), rotate(k_BSKH, *rotation)
        out_BSNH = self.attend(q_BSNH, k_BSKH, v_BSKH)
        out: Tensor = self.wo(out_BSNH.reshape(batch, num_tokens, -1))
        return out

    def attend(self, q_BSNH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor) -> Tensor:
        """Mix the values of earlier positions. Returns `[B, S, N, H]`."""
        queries_per_key = q_BSNH.shape[2] // k_BSKH.shape[2]
        if queries_per_key > 1:  # torch's fused CPU kernel has no grouped heads
            k_BSKH = k_BSKH.repeat_interleave(queries_per_key, dim=2)
            v_BSKH = v_BSKH.repeat_interleave(queries_per_key, dim=2)
        q, k, v = (x.transpose(1, 2) for x in (q_BSNH, k_BSKH, v_BSKH))
        if self.training and self.dropout > 0:
            with own_stream(self.tp_rank, q.device):
                out = F.scaled_dot_product_attention(
                    q, k, v, dropout_p=self.dropout, is_causal=True
                )
        else:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return out.transpose(1, 2)
