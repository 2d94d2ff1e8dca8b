"""The discriminator of the slides: a PatchGAN, which classifies overlapping patches of an image pair."""

from __future__ import annotations

import torch
from torch import nn

from model.generator import initialise

# The slides state a grid of 6x6 logits for 32x32 images, and patches of 14x14 pixels. The tutorial's stack without one
# block has that grid and patches of 34x34; a smaller stack has both numbers. (kernel, stride, padding) of each layer.
_STACKS: dict[int, tuple[tuple[int, int, int], ...]] = {
    34: ((4, 2, 1), (4, 2, 1), (4, 1, 1), (4, 1, 1)),
    14: ((4, 2, 1), (4, 2, 0), (2, 1, 0)),
}


class Discriminator(nn.Module):
    """Maps a noisy image and a candidate, (N, C, H, W) each, to one logit for each patch, (N, 1, h, w).

    Blocks of Conv, BatchNorm (not on the first and last) and LeakyReLU. A logit depends on `patch` x `patch` pixels.
    """

    def __init__(self, *, channels: int, width: int, patch: int) -> None:
        super().__init__()
        *hidden, last = _STACKS[patch]
        layers: list[nn.Module] = []
        w_in = 2 * channels
        for i, (kernel, stride, padding) in enumerate(hidden):
            w_out = width * 2**i
            layers.append(nn.Conv2d(w_in, w_out, kernel, stride, padding, bias=i == 0))
            if i > 0:
                layers.append(nn.BatchNorm2d(w_out))
            layers.append(nn.LeakyReLU(0.2))
            w_in = w_out
        layers.append(nn.Conv2d(w_in, 1, *last))
        self.layers = nn.Sequential(*layers)
        self.apply(initialise)

    def forward(self, noisy: torch.Tensor, candidate: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(torch.cat([noisy, candidate], dim=1))
        return logits.float()  # sigmoid cross entropy in bfloat16 loses the small gradients
