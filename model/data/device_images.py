"""Images on the device of a training: batches, and random crops of images of any size."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch

from .image_sets import Images, VariableSizeImages
from .memory_mapped import PixelFile
from .noise import REAL, Noise, parse_noise
from .pixel_format import EIGHT_BITS, PixelFormat


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceImages:
    """Images on a device; several trainings can share them, one after another."""

    train: torch.Tensor | DeviceVariableSizeImages  # uint8 (N, C, H, W), or crops of any pixel format, without noise
    validation: torch.Tensor  # float32 (M, C, H, W) in [-1, 1]
    validation_noisy: torch.Tensor  # the same for every training
    noise: Noise | None  # None: real

    @classmethod
    def to_device(cls, images: Images, noise: str, device: torch.device, *, num_validation: int) -> DeviceImages:
        """Move images to a device, without a copy of the training images on the CPU.

        Args:
            noise: a spec such as gaussian:30, or real.
            num_validation: number of validation images to use.
        """
        noisy, clean = images.validation[:num_validation].with_noise(noise, "validation")
        return cls(
            train=_train_images_on(images.train, images.pixel_format, device),
            validation=_on(clean, device),
            validation_noisy=_on(noisy, device),
            noise=None if noise == REAL else parse_noise(noise),
        )

    @property
    def device(self) -> torch.device:
        """The device of all tensors."""
        return self.validation.device

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a training image or crop."""
        channels, height, width = self.validation.shape[1:]
        return channels, height, width

    def batch(self, rows: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Make a batch without synchronising with the device.

        Args:
            rows: indices of training images, (B,).
            generator: for crops and noise.

        Returns:
            Noisy and clean images, float32 (B, C, H, W) in [-1, 1].
        """
        if isinstance(self.train, DeviceVariableSizeImages):
            clean, noisy = self.train.crops(rows, generator)
        else:
            clean, noisy = _unit(self.train[rows], EIGHT_BITS), None
        if noisy is None:
            assert self.noise is not None
            noisy = self.noise(clean, generator)
        return noisy, clean


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceVariableSizeImages:
    """VariableSizeImages on a device. Pixels in a file stay there; the host reads the crops of each batch."""

    pixels: torch.Tensor  # 16-bit ones as int16: torch lacks operations on uint16 on some devices
    noisy: torch.Tensor | None
    tiles: torch.Tensor
    channels: int
    crop: int
    pixel_format: PixelFormat

    def __len__(self) -> int:
        return len(self.tiles)

    def crops(self, rows: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Cut a random crop from the image of each row: clean, and noisy where there are pairs."""
        begin, height, width = self.tiles[rows].T[:, :, None, None, None]
        corner = torch.rand(2, len(rows), 1, 1, 1, generator=generator, device=rows.device)
        top, left = (corner[0] * (height - self.crop + 1)).long(), (corner[1] * (width - self.crop + 1)).long()
        side = torch.arange(self.crop, device=rows.device)
        channel = torch.arange(self.channels, device=rows.device)[:, None, None]
        indices = begin + channel * height * width + (top + side[:, None]) * width + left + side
        return self._cut(self.pixels, indices), None if self.noisy is None else self._cut(self.noisy, indices)

    def _cut(self, pixels: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        return _unit(pixels[indices.to(pixels.device)].to(indices.device), self.pixel_format)


def _train_images_on(
    train: np.ndarray | VariableSizeImages, pixel_format: PixelFormat, device: torch.device
) -> torch.Tensor | DeviceVariableSizeImages:
    if not isinstance(train, VariableSizeImages):
        return _on(train, device)
    return DeviceVariableSizeImages(
        pixels=_pixels_on(train.pixels, device),
        noisy=None if train.noisy is None else _pixels_on(train.noisy, device),
        tiles=_on(train.tiles, device),
        channels=train.channels,
        crop=train.crop,
        pixel_format=pixel_format,
    )


def _pixels_on(pixels: np.ndarray | PixelFile, device: torch.device) -> torch.Tensor:
    if isinstance(pixels, PixelFile):
        pixels, device = pixels.open(), torch.device("cpu")
    return _on(pixels.view(np.int16) if pixels.dtype == np.uint16 else pixels, device)


def _on(array: np.ndarray, device: torch.device) -> torch.Tensor:
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # Ray's arrays are read-only, as these stay
        return torch.from_numpy(array).to(device)


def _unit(pixels: torch.Tensor, pixel_format: PixelFormat) -> torch.Tensor:
    """Like PixelFormat.to_unit, in torch; 16-bit pixels come as int16."""
    values = (pixels.int().bitwise_and_(0xFFFF) if pixels.dtype == torch.int16 else pixels).float()
    if pixel_format.low:
        values.sub_(pixel_format.low)
    return values.div_(pixel_format.half).sub_(1)
