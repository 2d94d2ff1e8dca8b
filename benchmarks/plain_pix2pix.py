"""pix2pix in PyTorch as tutorials have it, beside which the benchmarks measure; needs torch and NumPy alone.

A DataLoader that adds noise on the host, D(fake) twice a step, gradients of D's weights in G's pass, `.item()` for each
loss, Adam as it comes, float32. Networks (as plain layers) and losses are the product's own: what differs is how they
are used.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from model import losses
from model.config import TrainConfig
from model.discriminator import Discriminator
from model.generator import Generator

NOISE_STD = 30  # of 255: gaussian:30


class NoisyImages(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Images (N, C, H, W), float32 in [-1, 1], that the host makes noisy when they are asked for: noisy, clean."""

    def __init__(self, clean: np.ndarray) -> None:
        self._clean, self._random = clean, np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self._clean)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        clean = self._clean[index]
        noise = self._random.standard_normal(clean.shape, dtype=np.float32) * np.float32(NOISE_STD / 127.5)
        return torch.from_numpy(np.clip(clean + noise, -1, 1)), torch.from_numpy(clean)


def loader(clean: np.ndarray, batch_size: int) -> DataLoader[tuple[torch.Tensor, torch.Tensor]]:
    """An epoch of them, shuffled."""
    return DataLoader(NoisyImages(clean), batch_size, shuffle=True, drop_last=True)


def with_plain_layers(network: torch.nn.Module) -> None:
    """Ordinary convolutions in place of the product's matrix products."""
    for layer in network.modules():
        for plain in (torch.nn.Conv2d, torch.nn.ConvTranspose2d):
            if isinstance(layer, plain):
                layer.__class__ = plain


class PlainPix2Pix:
    """Both networks, their optimisers, and one update of them."""

    def __init__(self, config: TrainConfig, *, channels: int, image_size: int, device: torch.device) -> None:
        self._config, self._device = config, device
        torch.manual_seed(config.seed)
        self.generator = Generator(config, channels=channels, image_size=image_size)
        with_plain_layers(self.generator)
        self.generator.to(device)
        self.discriminator = Discriminator(channels=channels, width=config.width, patch=config.patch).to(device)
        betas = (config.beta1, config.beta2)
        self._adam_g = torch.optim.Adam(self.generator.parameters(), lr=config.lr_g, betas=betas)
        self._adam_d = torch.optim.Adam(self.discriminator.parameters(), lr=config.lr_d, betas=betas)

    def step(self, noisy: torch.Tensor, clean: torch.Tensor) -> tuple[float, float]:
        """On a batch from the host; the discriminator's loss and the generator's."""
        noisy, clean = noisy.to(self._device), clean.to(self._device)
        fake = self.generator(noisy)
        self._adam_d.zero_grad()
        loss_d = losses.discriminator_real(self.discriminator(noisy, clean)) + losses.discriminator_fake(
            self.discriminator(noisy, fake.detach())
        )
        loss_d.backward()
        self._adam_d.step()
        self._adam_g.zero_grad()
        loss_g = losses.generator_adversarial(self.discriminator(noisy, fake)) + losses.reconstruction(
            fake, clean, self._config
        )
        loss_g.backward()
        self._adam_g.step()
        return loss_d.item(), loss_g.item()
