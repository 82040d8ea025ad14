"""The way into a vision transformer (ViT, 2010.11929): an image as a sequence of patches.

    image [C, I, I] -> (I/P)^2 patches of C P P pixels -> projection -> class token before them

The class token's last state goes to the head; no other does.

Shapes: B images, C channels, I pixels, P pixels of a patch, S = 1 + (I/P)^2 tokens, D dim.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from parctl.recipes.spec import ModelSpec
from parctl.runtime.model.linear import local


class PatchEmbedding(nn.Module):
    """`weight` is that of a convolution of stride P, flattened: `[D, C P P]`, whole under tp."""

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        assert model.vision is not None
        self.patch_size = model.vision.patch_size
        pixels = model.vision.num_channels * self.patch_size**2
        self.weight = nn.Parameter(torch.empty(model.dim, pixels))
        self.bias = nn.Parameter(torch.empty(model.dim))
        self.class_token = nn.Parameter(torch.empty(1, model.dim))

    def forward(self, images_BCII: Tensor) -> Tensor:
        """Return `[B, S, D]`."""
        weight, size = local(self.weight), self.patch_size
        pixels_BXS = F.unfold(images_BCII.to(weight.dtype), size, stride=size)
        patches_BSD = F.linear(pixels_BXS.transpose(1, 2), weight, local(self.bias))
        first_B1D = local(self.class_token).expand(len(images_BCII), 1, -1)
        return torch.cat((first_B1D, patches_BSD), dim=1)
