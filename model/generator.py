"""The generator of the slides: a U-Net from noisy to clean images, of the TensorFlow pix2pix tutorial."""

from __future__ import annotations

import math

import torch
from torch import nn


class Generator(nn.Module):
    """Noisy (N, C, H, W) in [-1, 1] to clean of the same shape and range.

    Encoder blocks Conv 4x4 stride 2, BatchNorm (not on the first), LeakyReLU, down to 1x1; decoder blocks
    TransposedConv 4x4 stride 2, BatchNorm, Dropout (first three), ReLU, then the skip connection; a last
    TransposedConv and tanh. Depth is log2(image_size), at most 8 (arXiv 1611.07004, appendix 6.1.1).
    H and W must be multiples of `size_multiple`.
    """

    def __init__(self, *, channels: int, image_size: int, width: int, dropout: float) -> None:
        super().__init__()
        depth = min(int(math.log2(image_size)), 8)
        if image_size < 4 or image_size % 2**depth:
            raise ValueError(f"image_size={image_size}: must be a multiple of {2**depth}, and at least 4")
        self.size_multiple = 2**depth
        widths = [width * min(2**i, 8) for i in range(depth)]
        self.down = nn.ModuleList(
            _down(w_in, w_out, normalise=i > 0)
            for i, (w_in, w_out) in enumerate(zip([channels, *widths], widths, strict=False))
        )
        skips = widths[-2::-1]
        inputs = [widths[-1], *(2 * skip for skip in skips)]
        self.up = nn.ModuleList(
            _up(w_in, w_out, dropout=dropout if i < 3 else 0.0)
            for i, (w_in, w_out) in enumerate(zip(inputs, skips, strict=False))
        )
        self.last = nn.ConvTranspose2d(inputs[-1], channels, 4, stride=2, padding=1)
        self.apply(initialise)

    def forward(self, noisy: torch.Tensor) -> torch.Tensor:
        x, skips = noisy, []
        for down in self.down:
            x = down(x)
            skips.append(x)
        for up, skip in zip(self.up, skips[-2::-1], strict=True):
            x = torch.cat([up(x), skip], dim=1)
        # The image itself in float32: bfloat16 near -1 and 1 has steps of 1/256, coarser than 8-bit pixels.
        return torch.tanh(self.last(x).float())


def initialise(module: nn.Module) -> None:
    """Weights from N(0, 0.02), as the paper does; BatchNorm starts as the identity."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _down(w_in: int, w_out: int, *, normalise: bool) -> nn.Sequential:
    conv = nn.Conv2d(w_in, w_out, 4, stride=2, padding=1, bias=False)
    norm = [nn.BatchNorm2d(w_out)] if normalise else []
    return nn.Sequential(conv, *norm, nn.LeakyReLU(0.2))


def _up(w_in: int, w_out: int, *, dropout: float) -> nn.Sequential:
    conv = nn.ConvTranspose2d(w_in, w_out, 4, stride=2, padding=1, bias=False)
    drop = [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(conv, nn.BatchNorm2d(w_out), *drop, nn.ReLU())
