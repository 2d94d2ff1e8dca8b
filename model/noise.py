"""Noise models, named by a short spec: `gaussian:30`, `gaussian:30-50`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
import torch

from model.config import ConfigError

_FULL_RANGE = 255.0  # the spec's scale, that of 8-bit images
_SPEC = re.compile(r"gaussian:([0-9.]+)(?:-([0-9.]+))?")


@dataclass(frozen=True, slots=True)
class GaussianNoise:
    """Additive Gaussian noise, then clipping: L' = clip(L + N). The standard deviation of each image is drawn
    uniformly from [std_low, std_high], on the scale of 8-bit images (0 to 255)."""

    std_low: float
    std_high: float

    @classmethod
    def parse(cls, spec: str) -> GaussianNoise:
        """From `gaussian:STD` or `gaussian:LOW-HIGH`. Raises ConfigError."""
        match = _SPEC.fullmatch(spec)
        try:
            low = float(match[1]) if match else math.nan
            high = float(match[2]) if match and match[2] else low
        except ValueError:
            low = high = math.nan
        if not 0 < low <= high <= _FULL_RANGE:
            raise ConfigError(
                f"noise={spec}: a noise is gaussian:STD or gaussian:LOW-HIGH with 0 < STD <= 255, "
                "on the scale of 8-bit images, such as gaussian:30"
            )
        return cls(low, high)

    def __call__(self, clean: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Noisy copies of clean (N, C, H, W) in [-1, 1], drawn on clean's device."""
        normal = torch.empty_like(clean).normal_(generator=generator)
        scale = 2 / _FULL_RANGE
        if self.std_low == self.std_high:
            return clean.add(normal, alpha=self.std_low * scale).clamp_(-1, 1)
        std = torch.empty(len(clean), 1, 1, 1, device=clean.device)
        std.uniform_(self.std_low * scale, self.std_high * scale, generator=generator)
        return clean.addcmul(normal, std).clamp_(-1, 1)

    def fixed(self, clean: np.ndarray, *, seed: int) -> np.ndarray:
        """The same noise for the same (seed, index) on any machine and device: for validation and test.

        clean: (N, C, H, W) float32 in [-1, 1]; gives the same shape and type.
        """
        noisy = np.empty_like(clean)
        for index, image in enumerate(clean):
            draw = np.random.Generator(np.random.Philox(key=[seed, index]))
            std = draw.uniform(self.std_low, self.std_high) * 2 / _FULL_RANGE
            noise = draw.standard_normal(image.shape, dtype=np.float32)
            np.clip(image + np.float32(std) * noise, -1, 1, out=noisy[index])
        return noisy
