"""The decoder-only transformer of the Llama and GPT families, as its shape (`ModelSpec`) says.

    tokens -> embedding (+ learned positions) -> blocks -> final norm -> head -> logits
    block:  x + attention(norm(x)), then x + feed_forward(norm(x))

Nothing here knows about parallelism, except where exchanges between ranks will happen (`enter`,
`leave`) and that a rank reads its own part of a weight (`local`). Parameter names stay those of
this file in every checkpoint.

Shapes: B batch, S sequence, D dim, F ffn_dim, V vocabulary. Under SP the stream between `leave` and
`enter` holds S/tp tokens.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from parctl.recipes.spec import ModelSpec
from parctl.runtime.attention import Attention, Rotation
from parctl.runtime.dropout import Dropout
from parctl.runtime.linear import Exchange, Linear, local, nothing
from parctl.runtime.rope import rotation


class Norm(nn.Module):
    """RMSNorm (1910.07467) or LayerNorm over the last dim."""

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        self.eps = model.norm_eps
        self.weight = nn.Parameter(torch.empty(model.dim))
        self.bias = nn.Parameter(torch.empty(model.dim)) if model.norm == "layernorm" else None

    def forward(self, x_BSD: Tensor) -> Tensor:
        weight = local(self.weight)
        if self.bias is None:
            return F.rms_norm(x_BSD, weight.shape, weight, self.eps)
        return F.layer_norm(x_BSD, weight.shape, weight, local(self.bias), self.eps)


class Embedding(nn.Module):
    """Token embedding.

    With the vocabulary split over tp, tokens of other ranks look up zeros and `leave` adds up.
    """

    first_row: int | None = None  # of this rank's part of the vocabulary

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(model.vocab_size, model.dim))
        self.leave: Exchange = nothing

    def forward(self, tokens_BS: Tensor) -> Tensor:
        weight = local(self.weight)
        if self.first_row is None:
            return F.embedding(tokens_BS, weight)
        rows_BS = tokens_BS - self.first_row
        foreign_BS = (rows_BS < 0) | (rows_BS >= weight.shape[0])
        x_BSD = F.embedding(rows_BS.masked_fill(foreign_BS, 0), weight)
        return self.leave(x_BSD.masked_fill(foreign_BS.unsqueeze(-1), 0))


class Positions(nn.Module):
    """Learned position embedding. Under SP each TP rank adds the rows of its own tokens."""

    shard: tuple[int, int] = (0, 1)  # which part of the sequence is ours, of how many

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(model.max_seq_len, model.dim))

    def forward(self, num_tokens: int) -> Tensor:
        index, count = self.shard
        own = num_tokens // count
        return local(self.weight)[index * own : (index + 1) * own]


class FeedForward(nn.Module):
    """The MLP, gated (SwiGLU, 2002.05202) or plain."""

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        self.activation = model.activation
        self.enter: Exchange = nothing
        if model.activation == "swiglu":
            self.w_gate = Linear(model.dim, model.ffn_dim, bias=model.bias)
        self.w_up = Linear(model.dim, model.ffn_dim, bias=model.bias)
        self.w_down = Linear(model.ffn_dim, model.dim, bias=model.bias)

    def forward(self, x_BSD: Tensor) -> Tensor:
        x_BSD = self.enter(x_BSD)
        h_BSF = self.w_up(x_BSD)
        match self.activation:
            case "swiglu":
                h_BSF = F.silu(self.w_gate(x_BSD)) * h_BSF
            case "gelu":
                h_BSF = F.gelu(h_BSF, approximate="tanh")
            case "relu":
                h_BSF = F.relu(h_BSF)
            case "squared-relu":
                h_BSF = F.relu(h_BSF).square()
        out: Tensor = self.w_down(h_BSF)
        return out


class Block(nn.Module):
    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        self.attention_norm = Norm(model)
        self.attention = Attention(model)
        self.feed_forward_norm = Norm(model)
        self.feed_forward = FeedForward(model)
        self.dropout = Dropout(model.dropout)

    def forward(self, x_BSD: Tensor, rotation: Rotation | None) -> Tensor:
        x_BSD = x_BSD + self.dropout(self.attention(self.attention_norm(x_BSD), rotation))
        out: Tensor = x_BSD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BSD)))
        return out


class Transformer(nn.Module):
    """Maps tokens `[B, S]` to logits `[B, S, V]`. Under TP, V is this rank's part of them."""

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        self.model = model
        self.embedding = Embedding(model)
        self.positions = Positions(model) if model.positions == "learned" else None
        self.dropout = Dropout(model.dropout)
        self.blocks = nn.ModuleList([Block(model) for _ in range(model.num_layers)])
        self.final_norm = Norm(model)
        self.enter_head: Exchange = nothing
        self.head = Linear(model.dim, model.vocab_size, bias=False)
        self.tie()

    def tie(self) -> None:
        """Let the head use the embedding's weight when the model says so.

        Its one name is `embedding.weight`.
        """
        if self.model.tied_embeddings:
            self.head.weight = self.embedding.weight

    def forward(self, tokens_BS: Tensor) -> Tensor:
        num_tokens = tokens_BS.shape[1]
        x_BSD = self.embedding(tokens_BS)
        if self.positions is not None:
            x_BSD = x_BSD + self.positions(num_tokens)
        x_BSD = self.dropout(x_BSD)
        turn = None
        if self.model.positions == "rope":
            dtype = torch.promote_types(x_BSD.dtype, torch.float32)
            turn = rotation(self.model, num_tokens, tokens_BS.device, dtype)
        for block in self.blocks:
            x_BSD = block(x_BSD, turn)
        logits_BSV: Tensor = self.head(self.enter_head(self.final_norm(x_BSD)))
        return logits_BSV
