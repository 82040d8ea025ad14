"""Multi-token prediction (DeepSeek-V3, 2412.19437, section 2.2): more tokens ahead, in sequence.

Module k sees what the one before it made of a token, and the embedding of the token k further on,
which it is meant to know, and predicts the one after that::

    h_0 = final norm of the main model
    h_k = block(projection[stream norm(h_k-1) ; embedding norm(embedding of token t + k)])
    logits_k = head(final norm(h_k)), to predict token t + k + 1

Embedding and head are the main model's. The modules exist for training only: each adds
`weight / K` times its loss, K the number of modules.

Shapes: B batch, S tokens, D dim, K modules.
"""

import torch
from torch import Tensor, nn

from parctl.recipes.spec import ModelSpec
from parctl.runtime.model.linear import Linear
from parctl.runtime.model.norm import Norm
from parctl.runtime.model.rope import Rotation


class TokenAhead(nn.Module):
    """One module. Under SP it works on this rank's tokens of the stream, as a block does."""

    def __init__(self, model: ModelSpec, block: nn.Module) -> None:
        super().__init__()
        self.stream_norm = Norm(model)
        self.embedding_norm = Norm(model)
        self.projection = Linear(2 * model.dim, model.dim, bias=False)
        self.block = block
        self.final_norm = Norm(model)

    def forward(
        self,
        h_BSD: Tensor,
        embedded_BSD: Tensor,
        rotation: Rotation | None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return `h_k` and its final norm."""
        both = torch.cat((self.stream_norm(h_BSD), self.embedding_norm(embedded_BSD)), dim=-1)
        h_BSD = self.block(self.projection(both), rotation, mask)
        return h_BSD, self.final_norm(h_BSD)
