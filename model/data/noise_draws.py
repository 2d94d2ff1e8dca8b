"""The random numbers of a noise: from torch's generator in training, from NumPy's for validation and test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch

if TYPE_CHECKING:
    from .noise import Range

STD_SCALE = 2 / 255.0  # a standard deviation on the scale of 8-bit images, on [-1, 1]


@dataclass(frozen=True, slots=True)
class TorchDraw:
    """Draws for N images from torch's generator on its device, without synchronising."""

    generator: torch.Generator
    num_images: int
    device: torch.device

    def each(self, value: Range) -> float | torch.Tensor:
        """Draw a parameter's value for each image, a number or (N, 1, 1, 1)."""
        return value.low if value.low == value.high else self._each(value.low, value.high)

    def _each(self, low: float, high: float) -> torch.Tensor:
        return torch.empty(self.num_images, 1, 1, 1, device=self.device).uniform_(low, high, generator=self.generator)

    def uniform(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.rand(shape, generator=self.generator, device=self.device)

    def normal(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device)

    def poisson(self, mean: torch.Tensor) -> torch.Tensor:
        return torch.poisson(mean, generator=self.generator)

    def add_gaussian(self, image: torch.Tensor, std: Range) -> torch.Tensor:
        """Return image + white noise.

        The two classes have different arithmetic: recorded figures depend on every bit, and a fused multiply-add rounds
        differently from a product and a sum.
        """
        normal = torch.empty_like(image).normal_(generator=self.generator)
        if std.low == std.high:
            return image.add(normal, alpha=std.low * STD_SCALE)
        return image.addcmul(normal, self._each(std.low * STD_SCALE, std.high * STD_SCALE))


@dataclass(frozen=True, slots=True)
class NumpyDraw:
    """Draws from NumPy's generator for one image: torch's numbers differ between processors."""

    generator: np.random.Generator

    def each(self, value: Range) -> float:
        return self.generator.uniform(value.low, value.high)

    def uniform(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.from_numpy(self.generator.random(shape, dtype=np.float32))

    def normal(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.from_numpy(self.generator.standard_normal(shape, dtype=np.float32))

    def poisson(self, mean: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.generator.poisson(mean.numpy()).astype(np.float32))

    def add_gaussian(self, image: torch.Tensor, std: Range) -> torch.Tensor:
        scaled = np.float32(self.each(std) * 2 / 255.0)
        return image + float(scaled) * self.normal(tuple(image.shape))


Draw: TypeAlias = TorchDraw | NumpyDraw
