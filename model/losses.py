"""Adversarial losses of G and D (the slides' is sigmoid cross entropy), and the weighted sum of L1, SSIM and MSE.

All take logits of any shape, or images (N, C, H, W) float32 in [-1, 1], and return a scalar.
"""

from __future__ import annotations

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss, relu

from model.config import Adversarial, TrainConfig

from . import metrics


def generator_adversarial(logits_fake: torch.Tensor, kind: Adversarial = "sigmoid") -> torch.Tensor:
    """The generator's loss: label 1 for generated images; hinge (Lim and Ye 2017, arXiv 1705.02894): minus the mean."""
    return -logits_fake.mean() if kind == "hinge" else _distance(logits_fake, 1.0, kind)


def discriminator_real(logits_real: torch.Tensor, kind: Adversarial = "sigmoid") -> torch.Tensor:
    """The discriminator's loss on real images, label 1; hinge: no loss from 1 on."""
    return relu(1 - logits_real).mean() if kind == "hinge" else _distance(logits_real, 1.0, kind)


def discriminator_fake(logits_fake: torch.Tensor, kind: Adversarial = "sigmoid") -> torch.Tensor:
    """The discriminator's loss on generated images, label 0; hinge: no loss up to -1. The two losses add up."""
    return relu(1 + logits_fake).mean() if kind == "hinge" else _distance(logits_fake, 0.0, kind)


def _distance(logits: torch.Tensor, label: float, kind: Adversarial) -> torch.Tensor:
    """Sigmoid cross entropy, or least squares (Mao et al. 2016, arXiv 1611.04076) without its factor 1/2."""
    labels = torch.full_like(logits, label)
    return mse_loss(logits, labels) if kind == "least_squares" else binary_cross_entropy_with_logits(logits, labels)


def reconstruction(denoised: torch.Tensor, clean: torch.Tensor, config: TrainConfig) -> torch.Tensor:
    """Weighted sum of mean absolute error, 1 - SSIM and mean squared error, as far as config.loss includes them."""
    distances = {
        "l1": lambda: (denoised - clean).abs().mean(),
        "ssim": lambda: 1 - metrics.ssim(denoised, clean).mean(),
        "mse": lambda: (denoised - clean).square().mean(),
    }
    return torch.stack([weight * distances[name]() for name, weight in config.weights.items()]).sum()
