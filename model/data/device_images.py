"""Images on the device of a training: batches, and random crops of images of any size."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch

from model.data.image_sets import Images, VariableSizeImages

from .memory_mapped import PixelFile
from .noise import REAL, Noise, parse_noise
from .pixel_format import EIGHT_BITS, PixelFormat


def to_unit(images: np.ndarray) -> np.ndarray:
    """uint8 in [0, 255] to float32 in [-1, 1]."""
    return EIGHT_BITS.to_unit(images)


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceImages:
    """What trainings read, on their device; made once and shared by the trainings that run there one after another."""

    train: (
        torch.Tensor | DeviceVariableSizeImages
    )  # uint8 (N, C, H, W), or of any depth: noise is drawn afresh each time
    validation: torch.Tensor  # float32 (M, C, H, W) in [-1, 1]
    validation_noisy: torch.Tensor  # the same for every training
    noise: Noise | None  # None: real

    @classmethod
    def to_device(cls, images: Images, noise: str, device: torch.device, *, num_validation: int) -> DeviceImages:
        """Without a copy of the training images on the CPU. noise: a spec such as gaussian:30, or real."""
        noisy, clean = images.validation[:num_validation].with_noise(noise, "validation")
        return cls(
            train=_train_on(images.train, images.pixel_format, device),
            validation=_on(clean, device),
            validation_noisy=_on(noisy, device),
            noise=None if noise == REAL else parse_noise(noise),
        )

    @property
    def device(self) -> torch.device:
        """Where everything is."""
        return self.validation.device

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what is trained on."""
        channels, height, width = self.validation.shape[1:]
        return channels, height, width

    def batch(self, rows: torch.Tensor, draw: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Noisy and clean, float32 (B, C, H, W) in [-1, 1], of these training images. Doesn't wait for the device."""
        if isinstance(self.train, DeviceVariableSizeImages):
            clean, noisy = self.train.crops(rows, draw)
        else:
            clean, noisy = _unit(self.train[rows], EIGHT_BITS), None
        if noisy is None:
            assert self.noise is not None
            noisy = self.noise(clean, draw)
        return noisy, clean


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceVariableSizeImages:
    """As VariableSizeImages, on a device; but pixels in a file stay there, and each batch's crops are fetched by the host."""

    pixels: torch.Tensor  # 16-bit ones as int16: torch has not all that it does for uint16 on every device
    noisy: torch.Tensor | None
    tiles: torch.Tensor
    channels: int
    crop: int
    pixel_format: PixelFormat

    def __len__(self) -> int:
        return len(self.tiles)

    def crops(self, rows: torch.Tensor, draw: torch.Generator) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Clean, and noisy where there are pairs: one crop at random out of the image of each row; as batch."""
        begin, height, width = self.tiles[rows].T[:, :, None, None, None]
        corner = torch.rand(2, len(rows), 1, 1, 1, generator=draw, device=rows.device)
        top, left = (corner[0] * (height - self.crop + 1)).long(), (corner[1] * (width - self.crop + 1)).long()
        side = torch.arange(self.crop, device=rows.device)
        channel = torch.arange(self.channels, device=rows.device)[:, None, None]
        places = begin + channel * height * width + (top + side[:, None]) * width + left + side
        return self._cut(self.pixels, places), None if self.noisy is None else self._cut(self.noisy, places)

    def _cut(self, pixels: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        return _unit(pixels[places.to(pixels.device)].to(places.device), self.pixel_format)


def _train_on(
    train: np.ndarray | VariableSizeImages, depth: PixelFormat, device: torch.device
) -> torch.Tensor | DeviceVariableSizeImages:
    if not isinstance(train, VariableSizeImages):
        return _on(train, device)
    noisy = None if train.noisy is None else _pixels_on(train.noisy, device)
    pixels, tiles = _pixels_on(train.pixels, device), _on(train.tiles, device)
    return DeviceVariableSizeImages(
        pixels=pixels, noisy=noisy, tiles=tiles, channels=train.channels, crop=train.crop, pixel_format=depth
    )


def _pixels_on(pixels: np.ndarray | PixelFile, device: torch.device) -> torch.Tensor:
    if isinstance(pixels, PixelFile):
        pixels, device = pixels.open(), torch.device("cpu")
    return _on(pixels.view(np.int16) if pixels.dtype == np.uint16 else pixels, device)


def _on(array: np.ndarray, device: torch.device) -> torch.Tensor:
    with warnings.catch_warnings():  # arrays out of Ray's object store are read-only; nothing here writes to them
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array).to(device)


def _unit(pixels: torch.Tensor, depth: PixelFormat) -> torch.Tensor:
    """What Depth.to_unit gives, of pixels that nobody else has; see DeviceVariableSizeImages."""
    values = (pixels.int().bitwise_and_(0xFFFF) if pixels.dtype == torch.int16 else pixels).float()
    if depth.low:
        values.sub_(depth.low)
    return values.div_(depth.half).sub_(1)
