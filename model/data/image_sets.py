"""Image sets in memory: images of one size with their noise, images of several sizes, and all that a search uses."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .folder_layout import CLEAN, NOISY
from .memory_mapped import PixelFile, PixelFiles
from .noise import parse_noise
from .pictures import Picture
from .pixel_format import EIGHT_BITS, PixelFormat

# The seed of each split's noise: the same noisy images for every trial, report and export.
NOISE_SEEDS = {"train": 3, "validation": 1, "test": 2}


@dataclass(frozen=True, slots=True)
class ImagePairs:
    """Square images to measure on, (N, C, H, W), with their noisy copies where the noise is real."""

    clean: np.ndarray
    noisy: np.ndarray | None = None
    pixel_format: PixelFormat = EIGHT_BITS

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, which: slice) -> ImagePairs:
        return ImagePairs(self.clean[which], None if self.noisy is None else self.noisy[which], self.pixel_format)

    def with_noise(self, noise: str, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Return noisy and clean images, float32 (N, C, H, W) in [-1, 1].

        Args:
            noise: a spec such as gaussian:30; ignored where the noise is real.
            split: train, validation or test; decides the fixed seed of the noise.
        """
        clean = self.pixel_format.to_unit(self.clean)
        if self.noisy is not None:
            return self.pixel_format.to_unit(self.noisy), clean
        return parse_noise(noise).fixed(clean, seed=NOISE_SEEDS[split]), clean


@dataclass(frozen=True, kw_only=True, slots=True)
class VariableSizeImages:
    """Images of any sizes as one flat array, which trials share without a copy, for random crops.

    An epoch has as many crops as would tile the images, and each image gives as many crops as it has tiles.
    """

    pixels: np.ndarray | PixelFile  # each image (C, H, W), one after another; a file includes other splits
    noisy: np.ndarray | PixelFile | None  # as pixels
    tiles: np.ndarray  # int64 (M, 3), for each tile: where its image begins, and the image's height and width
    channels: int
    crop: int

    @classmethod
    def from_pictures(
        cls, pictures: Sequence[Picture], crop: int, store: PixelFiles | None = None
    ) -> VariableSizeImages:
        """Join checked pictures of one split; `store` has their pixels, if they do not fit in memory."""
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
        """Yield all pixels, image by image, then the tiles; the same for pixels in memory and in a file."""
        begins, heights, widths = self.tiles.T
        first = np.flatnonzero(np.diff(begins, prepend=-1))
        sizes = (self.channels * heights * widths)[first]
        for pixels in (self.pixels, self.noisy):
            if pixels is not None:
                flat = pixels.open() if isinstance(pixels, PixelFile) else pixels
                yield from (flat[begin : begin + size] for begin, size in zip(begins[first], sizes, strict=True))
        begins_in_memory = np.repeat(np.cumsum(sizes) - sizes, np.diff(first, append=len(begins)))
        yield np.stack([begins_in_memory, heights, widths], axis=1)

    def __len__(self) -> int:
        return len(self.tiles)


@dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """The images that a search uses."""

    train: np.ndarray | VariableSizeImages  # (N, C, H, W) of the validation images' size, or larger ones to crop
    validation: ImagePairs
    padding: int = 0  # black pixels on each side of every image
    messages: tuple[str, ...] = ()  # for people, on a folder: which images it has, and what was left out

    @property
    def pixel_format(self) -> PixelFormat:
        """The format of all images."""
        return self.validation.pixel_format

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a training image or crop."""
        channels, height, width = self.validation.clean.shape[1:]
        return channels, height, width

    @property
    def digest(self) -> str:
        """SHA-256 of all pixels: a search does not continue on other images."""
        digest = hashlib.sha256(repr(self.shape).encode())
        train = self.train.in_order() if isinstance(self.train, VariableSizeImages) else [self.train]
        for array in (*train, self.validation.clean, self.validation.noisy):
            digest.update(b"" if array is None else np.ascontiguousarray(array).data)
        return digest.hexdigest()
