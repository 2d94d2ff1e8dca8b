"""The losses of the slides: sigmoid cross entropy for G and D, L1, SSIM, and their weighted sum."""

from __future__ import annotations

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from model import metrics
from model.config import TrainConfig


def adversarial(logits_fake: torch.Tensor) -> torch.Tensor:
    """The generator's: sigmoid cross entropy of D's logits for generated images and ones."""
    return binary_cross_entropy_with_logits(logits_fake, torch.ones_like(logits_fake))


def real(logits_real: torch.Tensor) -> torch.Tensor:
    """The discriminator's, first half: real images and ones."""
    return binary_cross_entropy_with_logits(logits_real, torch.ones_like(logits_real))


def generated(logits_fake: torch.Tensor) -> torch.Tensor:
    """The discriminator's, second half: generated images and zeros. The two halves are summed, not averaged."""
    return binary_cross_entropy_with_logits(logits_fake, torch.zeros_like(logits_fake))


def reconstruction(denoised: torch.Tensor, clean: torch.Tensor, config: TrainConfig) -> torch.Tensor:
    """Weighted sum of mean absolute error and 1 - SSIM, as far as config.loss has them take part; a scalar.

    Both images (N, C, H, W) float32 in [-1, 1].
    """
    distances = {"l1": _l1, "ssim": _one_minus_ssim}
    return torch.stack([w * distances[name](denoised, clean) for name, w in config.weights.items()]).sum()


def _l1(denoised: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    return (denoised - clean).abs().mean()


def _one_minus_ssim(denoised: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    return 1 - metrics.ssim(denoised, clean).mean()
