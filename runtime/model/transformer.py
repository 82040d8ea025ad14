"""The transformer of the Llama, GPT and T5 families, as its shape (`ModelSpec`) says.

    tokens -> embedding (+ learned positions) -> blocks -> final norm -> head -> logits
    block:  x + attention(norm(x)), then x + feed_forward(norm(x))
            (parallel: x + attention(norm(x)) + feed_forward(norm(x)))
            (with an encoder, between the two: x + cross_attention(norm(x), memory))

A pipeline stage is the same module with some of its parts (`Part`), under the same names.

Nothing here knows about parallelism, except where exchanges between ranks will happen (`enter`,
`leave`) and that a rank reads its own part of a weight (`local`). Parameter names stay those of
this file in every checkpoint.

Shapes: B batch, S sequence, D dim, F ffn_dim, V vocabulary. Under SP the stream between `leave` and
`enter` holds S/tp tokens.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from parctl.recipes.parameters import is_sparse
from parctl.recipes.spec import ModelSpec
from parctl.runtime.execution.streams import side_by_side
from parctl.runtime.model.attention import Attention, Kernel, local_kernel
from parctl.runtime.model.dropout import Dropout, skip_stream
from parctl.runtime.model.encoder import Encoder
from parctl.runtime.model.feed_forward import FeedForward
from parctl.runtime.model.latent_attention import LatentAttention
from parctl.runtime.model.linear import Exchange, Linear, local, nothing
from parctl.runtime.model.moe import Moe
from parctl.runtime.model.multi_token import TokenAhead
from parctl.runtime.model.norm import Norm
from parctl.runtime.model.relative import RelativeBias
from parctl.runtime.model.rope import Rotation, rotation
from parctl.runtime.model.sequence import WHOLE, TokenPlaces
from parctl.runtime.model.vision import PatchEmbedding


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

    def forward(self, positions_S: Tensor) -> Tensor:
        index, count = self.shard
        return F.embedding(positions_S.chunk(count)[index], local(self.weight))


class Block(nn.Module):
    """Attention, then an MLP, or experts (`moe`) in the place of `feed_forward`.

    `reads_memory`: between them, attention to what an encoder has made.
    """

    def __init__(self, model: ModelSpec, *, sparse: bool, reads_memory: bool = False) -> None:
        super().__init__()
        self.attention_norm = Norm(model)
        self.attention = Attention(model) if model.mla is None else LatentAttention(model)
        self.cross_norm = Norm(model) if reads_memory else None
        self.cross_attention = Attention(model) if reads_memory else None
        self.feed_forward_norm = Norm(model)
        self.feed_forward = None if sparse else FeedForward(model, model.ffn_dim)
        self.moe = Moe(model) if sparse else None
        self.dropout = Dropout(model.dropout)

    def forward(
        self,
        x_BSD: Tensor,
        rotation: Rotation | None,
        mask: Tensor | None = None,
        memory_BMD: Tensor | None = None,
    ) -> Tensor:
        x_BSD = x_BSD + self.dropout(self.attention(self.attention_norm(x_BSD), rotation, mask))
        if self.cross_norm is not None and self.cross_attention is not None:
            h_BSD = self.cross_attention(self.cross_norm(x_BSD), None, None, memory_BMD)
            x_BSD = x_BSD + self.dropout(h_BSD)
        feed_forward = self.moe if self.feed_forward is None else self.feed_forward
        assert feed_forward is not None
        out: Tensor = x_BSD + self.dropout(feed_forward(self.feed_forward_norm(x_BSD)))
        return out


class ParallelBlock(Block):
    """Attention and MLP (or experts) side by side, on one norm's output (PaLM, 2204.02311).

    Operator parallelism leaves a rank some of the branches and sets the others to None; `enter` and
    `leave` stand around all of them.
    """

    num_streams = 1

    def __init__(self, model: ModelSpec, *, sparse: bool) -> None:
        super().__init__(model, sparse=sparse)
        self.enter: Exchange = nothing
        self.leave: Exchange = nothing
        del self.feed_forward_norm

    def forward(
        self,
        x_BSD: Tensor,
        rotation: Rotation | None,
        mask: Tensor | None = None,
        memory_BMD: Tensor | None = None,
    ) -> Tensor:
        h_BSD = self.enter(self.attention_norm(x_BSD))
        branches: list[Callable[[Tensor], Tensor]] = []
        attends: bool = self.attention is not None
        if attends:
            branches.append(partial(self.attention, rotation=rotation, mask=mask))
        elif self.training and self.dropout.p > 0:
            skip_stream()  # that the rank with the attention has taken
        branches += [mlp for mlp in (self.feed_forward, self.moe) if mlp is not None]
        parts = side_by_side(branches, h_BSD, num_streams=self.num_streams)
        out: Tensor = x_BSD + self.dropout(self.leave(sum(parts[1:], start=parts[0])))
        return out


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What of a model one pipeline stage holds."""

    layers: tuple[int, ...]  # indices in the whole model
    first: bool  # has the embedding: takes tokens, others take the stream
    last: bool  # has the final norm and the head: gives logits, others give the stream


def whole(model: ModelSpec) -> Part:
    return Part(layers=tuple(range(model.num_layers)), first=True, last=True)


def shares_embedding(model: ModelSpec) -> bool:
    """Whether the last stage uses the embedding too: as its head, or to predict further tokens."""
    return model.tied_embeddings or model.num_mtp_layers > 0


def make_blocks(
    model: ModelSpec, layers: Iterable[int], block_type: Callable[..., Block] = Block
) -> nn.ModuleDict:
    """Return a block for each of `layers`, by its number."""
    return nn.ModuleDict(
        {str(layer): block_type(model, sparse=is_sparse(model, layer)) for layer in layers}
    )


class Transformer(nn.Module):
    """Maps tokens `[B, S]` to logits `[B, S, V]`. Under TP, V is this rank's part of them.

    In training with K modules of multi-token prediction, `[B (1 + K), S, V]`: theirs come after.

    A stage that is not the first takes the stream `[B, S, D]`, one that is not the last gives it.
    """

    stream_shards = 1  # how many TP ranks share the tokens of the stream (SP)
    sequence: TokenPlaces = WHOLE  # the tokens that this cp rank holds
    mtp_loss = 0.0  # weight of multi-token prediction beside the loss of the next token
    # how the data axes accumulate (`runtime.parallel.data_parallel`)
    gathers_once = False  # parameters stay whole from a step's first forward to its last backward
    reduces_once = False  # gradients are exchanged in the last backward pass only

    def __init__(self, model: ModelSpec, part: Part | None = None) -> None:
        super().__init__()
        self.model = model
        self.part = part or whole(model)
        first, last = self.part.first, self.part.last
        # a last stage that uses the embedding keeps a copy of it, under its name
        has_embedding = first or (last and shares_embedding(model))
        kind = Embedding if model.vision is None else PatchEmbedding
        self.embedding = kind(model) if has_embedding else None
        self.positions = Positions(model) if first and model.positions == "learned" else None
        self.dropout = Dropout(model.dropout)
        relative = model.positions == "relative"
        self.relative_bias = RelativeBias(model, causal=model.causal) if relative else None
        self.encoder = None
        block_type: Callable[..., Block] = ParallelBlock if model.parallel_blocks else Block
        if model.num_encoder_layers:
            self.encoder = Encoder(model, make_blocks(model, range(model.num_encoder_layers)))
            block_type = partial(Block, reads_memory=True)
        self.blocks = make_blocks(model, self.part.layers, block_type)
        self.final_norm = Norm(model) if last else None
        self.mtp = nn.ModuleDict(
            {
                str(depth): TokenAhead(model, block_type(model, sparse=model.moe is not None))
                for depth in range(model.num_mtp_layers if last else 0)
            }
        )
        self.kernel: Kernel = local_kernel(model)
        self.enter_memory: Exchange = nothing
        self.enter_head: Exchange = nothing
        has_bias = model.vision is not None
        self.head = Linear(model.dim, self.num_logits, bias=has_bias) if last else None
        self.tie()

    @property
    def num_logits(self) -> int:
        """The width of the whole head: the vocabulary, or the classes of images."""
        vision = self.model.vision
        return self.model.vocab_size if vision is None else vision.num_classes

    def num_tokens(self, tokens: Tensor) -> int:
        """How many tokens of the stream the first stage makes of its input."""
        return tokens.shape[1] if self.model.vision is None else self.model.max_seq_len

    def tie(self) -> None:
        """Let the head use the embedding's weight when the model says so.

        Its one name is `embedding.weight`.
        """
        if self.model.tied_embeddings and self.head is not None:
            assert self.embedding is not None
            self.head.weight = self.embedding.weight

    def all_blocks(self) -> list[nn.Module]:
        """Return the blocks of the layers, then those of multi-token prediction."""
        layers = [block for stack in self.stacks() for block in stack.values()]
        return [*layers, *(cast(nn.Module, module.block) for module in self.mtp.values())]

    def stacks(self) -> list[nn.ModuleDict]:
        """Return the blocks by layer, those of an encoder before those of the decoder."""
        return [self.blocks] if self.encoder is None else [self.encoder.blocks, self.blocks]

    def forward(
        self,
        x: Tensor,
        *,
        documents: Tensor | None = None,
        following: Tensor | None = None,
        source: Tensor | None = None,
    ) -> Tensor:
        """`x` is tokens `[B, S]` in the first stage, the stream `[B, S, D]` in the others.

        Of images `[B, C, I, I]` the last stage gives logits `[B, classes]`.


        The other arguments are equal for all stages: those of `MicroBatch.context()`. `documents`
        `[B, T]` numbers the document of every token of the whole sequence, here or on other cp
        ranks; without it a token sees across borders. `following` `[B, S, 1 + K]` holds the tokens
        after each, which multi-token prediction reads. `source` `[B, S]` is what an encoder reads.
        """
        num_tokens = self.num_tokens(x) if self.part.first else x.shape[1] * self.stream_shards
        positions_S = self.sequence.positions(num_tokens, x.device)
        memory_BMD = None
        if self.encoder is not None:
            assert source is not None
            # one look-up of both: FSDP gathers the table for it once
            source_BSD, x_BSD = self.embed(torch.cat((source, x)), positions_S).chunk(2)
            memory_BMD = self.enter_memory(self.dropout(self.encoder(source_BSD, num_tokens)))
        else:
            x_BSD = self.embed(x, positions_S) if self.part.first else x
        turn = None
        if self.model.positions == "rope":
            dtype = torch.promote_types(x_BSD.dtype, torch.float32)
            turn = rotation(self.model, positions_S, dtype)
        mask = self.kernel.mask(documents)
        if self.relative_bias is not None:
            mask = self.relative_bias(num_tokens)
        for block in self.blocks.values():
            x_BSD = block(x_BSD, turn, mask, memory_BMD)
        if self.head is None:
            return x_BSD
        h_BSD = cast(Norm, self.final_norm)(x_BSD)
        if self.model.vision is not None:
            h_BSD = h_BSD[:, 0]  # the class token's
        elif self.relative_bias is not None and self.model.tied_embeddings:
            h_BSD = h_BSD * self.model.dim**-0.5  # T5: what embeds is too large to predict with
        logits_BSV: Tensor = self.head(self.enter_head(h_BSD))
        if not self.mtp or not self.training:
            return logits_BSV
        assert following is not None and self.embedding is not None
        logits = [logits_BSV]
        for depth, module in enumerate(self.mtp.values()):
            embedded_BSD = self.embedding(following[..., depth].clamp(min=0))
            h_BSD, normed_BSD = module(h_BSD, embedded_BSD, turn, mask)
            logits.append(self.head(self.enter_head(normed_BSD)))
        return torch.cat(logits)

    def embed(self, tokens_BS: Tensor, positions_S: Tensor) -> Tensor:
        assert self.embedding is not None
        x_BSD: Tensor = self.embedding(tokens_BS)
        if self.positions is not None:
            x_BSD = x_BSD + self.positions(positions_S)
        dropped: Tensor = self.dropout(x_BSD)
        return dropped
