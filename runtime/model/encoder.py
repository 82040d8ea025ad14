"""The encoder of an encoder-decoder model, and how a decoder reads it (1706.03762; T5, 1910.10683).

    source --embedding--> encoder blocks, every token sees all --norm--> memory
    tokens --embedding--> decoder blocks: self-attention, attention to the memory, MLP --> logits

Queries of the second attention come from the decoder, keys and values from the memory. The memory
is made once for all decoder blocks, so it enters work that is split over tp once, too.

Shapes: B batch, M tokens of the source, D dim.
"""

from torch import Tensor, nn

from parctl.recipes.spec import ModelSpec
from parctl.runtime.model.norm import Norm
from parctl.runtime.model.relative import RelativeBias


class Encoder(nn.Module):
    """`blocks` by layer, each of which sees the whole source."""

    def __init__(self, model: ModelSpec, blocks: nn.ModuleDict) -> None:
        super().__init__()
        self.relative_bias = RelativeBias(model, causal=False)
        self.blocks = blocks
        self.final_norm = Norm(model)

    def forward(self, x_BMD: Tensor, num_tokens: int) -> Tensor:
        """`num_tokens` of the whole source; under SP `x_BMD` holds this rank's."""
        bias = self.relative_bias(num_tokens)
        for block in self.blocks.values():
            x_BMD = block(x_BMD, None, bias)
        normed: Tensor = self.final_norm(x_BMD)
        return normed
