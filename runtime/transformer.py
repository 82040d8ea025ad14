"""The decoder-only transformer of the Llama and GPT families, as its shape (`ModelSpec`) says.

    tokens -> embedding (+ learned positions) -> blocks -> final norm -> head -> logits
    block:  x + attention(norm(x)), then x + feed_forward(norm(x))

A pipeline stage is the same module with some of its parts (`Part`), under the same names.

Nothing here knows about parallelism, except where exchanges between ranks will happen (`enter`,
`leave`) and that a rank reads its own part of a weight (`local`). Parameter names stay those of
this file in every checkpoint.

Shapes: B batch, S sequence, D dim, F ffn_dim, V vocabulary. Under SP the stream between `leave` and
`enter` holds S/tp tokens.
"""

from dataclasses import dataclass
from typing import cast

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What of a model one pipeline stage holds."""

    layers: tuple[int, ...]  # indices in the whole model
    first: bool  # has the embedding: takes tokens, others take the stream
    last: bool  # has the final norm and the head: gives logits, others give the stream


def whole(model: ModelSpec) -> Part:
    return Part(layers=tuple(range(model.num_layers)), first=True, last=True)


class Transformer(nn.Module):
    """Maps tokens `[B, S]` to logits `[B, S, V]`. Under TP, V is this rank's part of them.

    A stage that is not the first takes the stream `[B, S, D]`, one that is not the last gives it.
    """

    stream_shards = 1  # how many TP ranks share the tokens of the stream (SP)

    def __init__(self, model: ModelSpec, part: Part | None = None) -> None:
        super().__init__()
        self.model = model
        self.part = part or whole(model)
        first, last = self.part.first, self.part.last
        # a last stage whose head is tied keeps a copy of the embedding, under its name
        has_embedding = first or (last and model.tied_embeddings)
        self.embedding = Embedding(model) if has_embedding else None
        self.positions = Positions(model) if first and model.positions == "learned" else None
        self.dropout = Dropout(model.dropout)
        self.blocks = nn.ModuleDict({str(layer): Block(model) for layer in self.part.layers})
        self.final_norm = Norm(model) if last else None
        self.enter_head: Exchange = nothing
        self.head = Linear(model.dim, model.vocab_size, bias=False) if last else None
        self.tie()

    def tie(self) -> None:
        """Let the head use the embedding's weight when the model says so.

        Its one name is `embedding.weight`.
        """
        if self.model.tied_embeddings and self.head is not None:
            assert self.embedding is not None
            self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        """`x` is tokens `[B, S]` in the first stage, the stream `[B, S, D]` in the others."""
        num_tokens = x.shape[1] * (1 if self.part.first else self.stream_shards)
        x_BSD = self.embed(x) if self.part.first else x
        turn = None
        if self.model.positions == "rope":
            dtype = torch.promote_types(x_BSD.dtype, torch.float32)
            turn = rotation(self.model, num_tokens, x.device, dtype)
        for block in self.blocks.values():
            x_BSD = block(x_BSD, turn)
        if self.head is None:
            return x_BSD
        norm = cast(Norm, self.final_norm)
        logits_BSV: Tensor = self.head(self.enter_head(norm(x_BSD)))
        return logits_BSV

    def embed(self, tokens_BS: Tensor) -> Tensor:
        assert self.embedding is not None
        x_BSD: Tensor = self.embedding(tokens_BS)
        if self.positions is not None:
            x_BSD = x_BSD + self.positions(tokens_BS.shape[1])
        dropped: Tensor = self.dropout(x_BSD)
        return dropped
