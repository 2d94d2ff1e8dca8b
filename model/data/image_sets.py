"""Image sets, split -> batches on the device: Fashion-MNIST, padded to 32x32, found here or fetched; your folders."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .folder_layout import CLEAN, NOISY
from .image_folder import Picture
from .memory_mapped import PixelFile, PixelFiles
from .noise import REAL, Noise, parse_noise
from .pixel_format import EIGHT_BITS, PixelFormat

log = logging.getLogger(__name__)

# Where each split's noise starts: the same noisy images for every trial, report and export.
NOISE_SEEDS = {"train": 3, "validation": 1, "test": 2}


@dataclass(frozen=True, slots=True)
class ImagePairs:
    """Images to measure on, (N, C, H, W), height and width equal; with noisy ones where the noise is real."""

    clean: np.ndarray
    noisy: np.ndarray | None = None
    depth: PixelFormat = EIGHT_BITS

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, which: slice) -> ImagePairs:
        return ImagePairs(self.clean[which], None if self.noisy is None else self.noisy[which], self.depth)

    def noised(self, noise: str, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Noisy and clean, float32 (N, C, H, W) in [-1, 1]: the same for every trial, report and export."""
        clean = self.depth.to_unit(self.clean)
        if self.noisy is not None:
            return self.depth.to_unit(self.noisy), clean
        return parse_noise(noise).fixed(clean, seed=NOISE_SEEDS[split]), clean


@dataclass(frozen=True, kw_only=True, slots=True)
class VariableSizeImages:
    """Images of any sizes as one flat array, which trials share without a copy; random crops are cut from it.

    An epoch shows as many crops as would tile the images; each image is cut as often as it has tiles.
    """

    pixels: (
        np.ndarray | PixelFile
    )  # of a depth's type: each image (C, H, W), one after another; a file has other splits', too
    noisy: np.ndarray | PixelFile | None  # as pixels
    tiles: np.ndarray  # int64 (M, 3), a row for each tile: where its image begins, and its height and width
    channels: int
    crop: int

    @classmethod
    def of(cls, pictures: Sequence[Picture], crop: int, store: PixelFiles | None = None) -> VariableSizeImages:
        """Raises nothing: read_pictures has checked them. store: where it put them, if they are too many for memory."""
        rows, end = [], 0
        for picture in pictures:
            _, height, width = picture.clean.shape
            begin = end if picture.begin is None else picture.begin
            rows += [(begin, height, width)] * ((height // crop) * (width // crop))
            end += picture.clean.size

        def joined(kind: str, arrays: list[np.ndarray]) -> np.ndarray | PixelFile:
            if store is not None and pictures[0].begin is not None:
                return store.file(kind)
            return np.concatenate([array.ravel() for array in arrays])

        noisy = [picture.noisy for picture in pictures if picture.noisy is not None]
        return cls(
            pixels=joined(CLEAN, [picture.clean for picture in pictures]),
            noisy=joined(NOISY, noisy) if noisy else None,
            tiles=np.array(rows, np.int64),
            channels=len(pictures[0].clean),
            crop=crop,
        )

    def in_order(self) -> Iterator[np.ndarray]:
        """All pixels, image by image, then the tiles as they are in memory: the same wherever the pixels lie."""
        begins, heights, widths = self.tiles.T
        first = np.flatnonzero(np.diff(begins, prepend=-1))
        sizes = (self.channels * heights * widths)[first]
        for pixels in (self.pixels, self.noisy):
            if pixels is not None:
                flat = pixels.open() if isinstance(pixels, PixelFile) else pixels
                yield from (flat[begin : begin + size] for begin, size in zip(begins[first], sizes, strict=True))
        canonical = np.repeat(np.cumsum(sizes) - sizes, np.diff(first, append=len(begins)))
        yield np.stack([canonical, heights, widths], axis=1)

    def __len__(self) -> int:
        return len(self.tiles)


@dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """What a search may look at. train: (N, C, H, W) of the validation images' size, or larger ones to crop."""

    train: np.ndarray | VariableSizeImages
    validation: ImagePairs
    padding: int = 0  # pixels of black around each image: a denoiser must know
    told: tuple[str, ...] = ()  # of a folder: how many images of what kind, and what was left out; lines for people

    @property
    def depth(self) -> PixelFormat:
        """Of all of them."""
        return self.validation.depth

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what is trained on."""
        channels, height, width = self.validation.clean.shape[1:]
        return channels, height, width

    @property
    def digest(self) -> str:
        """Of all pixels, so that a search is not continued on other images."""
        digest = hashlib.sha256(repr(self.shape).encode())
        train = self.train.in_order() if isinstance(self.train, VariableSizeImages) else [self.train]
        for array in (*train, self.validation.clean, self.validation.noisy):
            digest.update(b"" if array is None else np.ascontiguousarray(array).data)
        return digest.hexdigest()


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
    def place(cls, images: Images, noise: str, device: torch.device, *, num_validation: int) -> DeviceImages:
        """Without a copy of the training images on the CPU. noise: a spec such as gaussian:30, or real."""
        noisy, clean = images.validation[:num_validation].noised(noise, "validation")
        return cls(
            train=_train_on(images.train, images.depth, device),
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
    depth: PixelFormat

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
        return _unit(pixels[places.to(pixels.device)].to(places.device), self.depth)


def _train_on(
    train: np.ndarray | VariableSizeImages, depth: PixelFormat, device: torch.device
) -> torch.Tensor | DeviceVariableSizeImages:
    if not isinstance(train, VariableSizeImages):
        return _on(train, device)
    noisy = None if train.noisy is None else _pixels_on(train.noisy, device)
    pixels, tiles = _pixels_on(train.pixels, device), _on(train.tiles, device)
    return DeviceVariableSizeImages(
        pixels=pixels, noisy=noisy, tiles=tiles, channels=train.channels, crop=train.crop, depth=depth
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
