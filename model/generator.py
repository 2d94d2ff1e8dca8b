"""The generator: by default the slides' U-Net, which is that of the TensorFlow pix2pix tutorial."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.functional import interpolate, linear, pad

from .common.errors import ConfigError
from .config import Norm, TrainConfig, Upsample

_RETURN_FACTOR = 0.1


class Generator(nn.Module):
    """Maps noisy images (N, C, H, W) in [-1, 1] to clean ones of the same shape and range.

    Encoder blocks Conv 4x4 stride 2, BatchNorm (not on the first), LeakyReLU, down to 1x1; decoder blocks
    TransposedConv 4x4 stride 2, BatchNorm, Dropout (first three), ReLU, then the skip connection; a last
    TransposedConv and tanh. Depth is log2(image_size), at most 8 (arXiv 1611.07004, appendix 6.1.1).
    H and W must be multiples of `size_multiple`, 2**depth. With `config.blocks` it
    is a U-Net of residual blocks like DRUNet (Zhang et al. 2021, arXiv 2008.13751): the first level has full
    resolution, each further one is half as large and twice as wide, up to eight times.

    Raises:
        ConfigError: the image size is not a multiple of 2**depth.
    """

    def __init__(self, config: TrainConfig, *, channels: int, image_size: int) -> None:
        super().__init__()
        if image_size < 4:
            raise ConfigError(f"image_size={image_size}: must be at least 4")
        depth = min(int(math.log2(image_size)), 8) if config.depth is None else config.depth
        if image_size % 2**depth:
            raise ConfigError(f"image_size={image_size}: must be a multiple of {2**depth}, for a depth of {depth}")
        self.size_multiple = 2**depth
        self.output = config.output
        self.detail: nn.Module | None = None
        # One value has no variance: instance normalisation would erase an innermost image of one pixel.
        inner_norm: Norm = "none" if config.norm == "instance" and image_size == 2**depth else config.norm
        norms = [*[config.norm] * (depth - 1), inner_norm]
        drops = [config.dropout if i < 3 else 0.0 for i in range(depth)]
        widths = [channels, *(config.width * min(2**i, 8) for i in range(depth + bool(config.blocks)))]
        if config.blocks:
            self._build_residual(widths, [config.norm, *norms], drops, config)
        else:
            self._build_unet(widths, norms, drops, config)

    def _build_unet(self, widths: list[int], norms: list[Norm], drops: list[float], config: TrainConfig) -> None:
        self.down = nn.ModuleList(
            _down(w_in, w_out, norm=norm if i else None)
            for i, ((w_in, w_out), norm) in enumerate(zip(pairwise(widths), norms, strict=True))
        )
        channels, width = widths[:2]
        skips = widths[-2:0:-1] + [width] * config.full_resolution_skip
        inputs = [widths[-1], *(2 * skip for skip in skips)]
        self.up = nn.ModuleList(
            _up(w_in, w_out, upsample=config.upsample, norm=norms[0], dropout=drop)
            for w_in, w_out, drop in zip(inputs, skips, drops, strict=False)
        )
        if config.full_resolution_skip:
            self.detail = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.LeakyReLU(0.2))
            self.last: nn.Module = nn.Conv2d(inputs[-1], channels, 3, padding=1)
        else:
            self.last = _larger(inputs[-1], channels, upsample=config.upsample, bias=True)
        self.apply(initialise)

    def _build_residual(self, widths: list[int], norms: list[Norm], drops: list[float], config: TrainConfig) -> None:
        """Layers between the blocks have torch's initialisation; each block begins as the identity."""

        def level(first: nn.Module, width: int, norm: Norm) -> nn.Sequential:
            return nn.Sequential(first, *(_Residual(width, norm) for _ in range(config.blocks)))

        channels, *widths = widths
        self.down = nn.ModuleList([level(nn.Conv2d(channels, widths[0], 3, padding=1), widths[0], norms[0])])
        for (w_in, w_out), norm in zip(pairwise(widths), norms[1:], strict=True):
            self.down.append(level(nn.Conv2d(w_in, w_out, 2, stride=2), w_out, norm))

        self.up = nn.ModuleList()
        joined: list[nn.Module] = []  # merges the last upsampled image with its skip connection
        for (w_in, w_out), drop in zip(pairwise(widths[::-1]), drops, strict=True):
            resizes = config.upsample == "resize"
            larger = _ResizeConv(w_in, w_out, 3, padding=1) if resizes else nn.ConvTranspose2d(w_in, w_out, 2, 2)
            self.up.append(nn.Sequential(*joined, larger, nn.Dropout(drop)))
            joined = [level(nn.Conv2d(2 * w_out, w_out, 1), w_out, norms[0])]
        last = nn.Conv2d(widths[0], channels, 3, padding=1)
        initialise(last)
        self.last = nn.Sequential(*joined, last)

    def forward(self, noisy: torch.Tensor) -> torch.Tensor:
        x, skips = noisy, []
        for down in self.down:
            x = down(x)
            skips.append(x)
        skips = skips[-2::-1] if self.detail is None else [*skips[-2::-1], self.detail(noisy)]
        for up, skip in zip(self.up, skips, strict=True):
            x = torch.cat([up(x), skip], dim=1)
        # float32: bfloat16 near -1 and 1 has steps of 1/256, coarser than 8-bit pixels.
        image: torch.Tensor = self.last(x).float()
        if self.output == "direct":
            return torch.tanh(image)
        # Clamped in training too: otherwise black pixels dominate, with 25.5 dB instead of 26.8 (docs/log.md).
        return clamped(noisy + image) if self.training else (noisy + image).clamp(-1, 1)


class _Clamp(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, image: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(image)
        return image.clamp(-1, 1)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> torch.Tensor:
        (image,), (gradient,) = context.saved_tensors, gradients
        returns = image * gradient > 0  # a step goes against the gradient
        return torch.where(image.abs() <= 1, gradient, _RETURN_FACTOR * returns * gradient)


def clamped(image: torch.Tensor) -> torch.Tensor:
    """Clamp to [-1, 1], with a gradient that leads pixels back into the range.

    Outside the range, a gradient that leads back is a tenth as large, and one that leads further out is 0. With a plain
    clamp both are 0, and a training does not recover from one bad step that pushes all pixels out of the range. A full
    gradient costs 0.5 dB with losses on neighbourhoods, such as SSIM (docs/log.md).
    """
    result: torch.Tensor = _Clamp.apply(image)  # type: ignore[no-untyped-call]
    return result


def initialise(module: nn.Module) -> None:
    """Initialise weights from N(0, 0.02), as in the paper; BatchNorm keeps torch's identity."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class _Halved(nn.Conv2d):
    """4x4, stride 2, padding 1.

    In training, 2x2 and 4x4 pixels go through a matrix product, several times faster than a convolution of this size
    (docs/log.md). Exports have dynamic sizes and use the convolution.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or x.shape[-2:] not in ((2, 2), (4, 4)):
            return super().forward(x)
        x, weight = x.permute(0, 2, 3, 1), self.weight.permute(0, 2, 3, 1)  # as they lie in memory
        if x.shape[1] == 2:
            return linear(x.flatten(1), weight[:, 1:3, 1:3].flatten(1), self.bias)[:, :, None, None]
        windows = pad(x, (0, 0, 1, 1, 1, 1)).unfold(1, 4, 2).unfold(2, 4, 2)  # (N, 2, 2, channels, 4, 4)
        return linear(windows.permute(0, 1, 2, 4, 5, 3).flatten(3), weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class _Doubled(nn.ConvTranspose2d):
    """4x4, stride 2, padding 1. In training, 1x1 and 2x2 pixels go through a matrix product, as in _Halved."""

    def forward(self, x: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        if not self.training or x.shape[-2:] not in ((1, 1), (2, 2)):
            return super().forward(x, output_size)
        weight = self.weight.permute(0, 2, 3, 1)
        if x.shape[-1] == 1:
            image = (x.flatten(1) @ weight[:, 1:3, 1:3].flatten(1)).view(len(x), 2, 2, -1)
        else:
            patches = (x.permute(0, 2, 3, 1) @ weight.flatten(1)).view(len(x), 2, 2, 4, 4, -1)
            inside = [  # three of the four rows and columns of each pixel's patch
                pad(patches[:, i, j, 1 - i : 4 - i, 1 - j : 4 - j], (0, 0, j, 1 - j, i, 1 - i))
                for i in (0, 1)
                for j in (0, 1)
            ]
            image = torch.stack(inside).sum(0)
        return (image if self.bias is None else image + self.bias).permute(0, 3, 1, 2)


class _ResizeConv(nn.Conv2d):
    """Nearest-neighbour upsampling, then a convolution: no checkerboard pattern (Odena et al. 2016)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(interpolate(x, scale_factor=2.0, mode="nearest"))


class _Residual(nn.Module):
    """x + Conv(ReLU(Conv(Norm(x)))), 3x3; begins as the identity.

    One normalisation: a second one after the convolutions, as in He et al., gave 26.5 dB instead of 27.9 (docs/log.md).
    """

    def __init__(self, width: int, norm: Norm) -> None:
        super().__init__()
        first, second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        nn.init.kaiming_normal_(first.weight, nonlinearity="relu")
        nn.init.zeros_(second.weight)
        self.change = nn.Sequential(*_norm(width, norm), first, nn.ReLU(), second)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        change: torch.Tensor = self.change(x)
        return x + change


def _larger(w_in: int, w_out: int, *, upsample: Upsample, bias: bool) -> nn.Module:
    if upsample == "resize":
        return _ResizeConv(w_in, w_out, 3, padding=1, bias=bias)
    return _Doubled(w_in, w_out, 4, stride=2, padding=1, bias=bias)


def _down(w_in: int, w_out: int, *, norm: Norm | None) -> nn.Sequential:
    conv = _Halved(w_in, w_out, 4, stride=2, padding=1, bias=norm == "none")
    return nn.Sequential(conv, *_norm(w_out, norm), nn.LeakyReLU(0.2))


def _up(w_in: int, w_out: int, *, upsample: Upsample, norm: Norm, dropout: float) -> nn.Sequential:
    conv = _larger(w_in, w_out, upsample=upsample, bias=norm == "none")
    drop = [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(conv, *_norm(w_out, norm), *drop, nn.ReLU())


def _norm(width: int, norm: Norm | None) -> list[nn.Module]:
    """Normalisation layers. None: the slides' first block, without bias; "none": convolutions with bias."""
    if norm == "batch":
        return [nn.BatchNorm2d(width)]
    return [nn.InstanceNorm2d(width, affine=True)] if norm == "instance" else []
