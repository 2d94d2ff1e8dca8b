"""The formats of image files, and an image file in memory: pixels, alpha and metadata."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..common.errors import ConfigError

# Of the formats that Pillow knows, those of pixels alone. Left out are formats that run a program or draw (EPS, PDF,
# WMF), that have layers or several sizes (PSD, icons), and scientific ones that Pillow reads in part (FITS, HDF5).
SUFFIXES = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "GIF": (".gif",),
    "JPEG2000": (".jp2", ".j2k"),
    "AVIF": (".avif",),
}
IMAGE_SUFFIXES = tuple(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
WHITE = {"uint8": 255, "uint16": 65535, "float32": 1}  # by the type of a pixel
CONVERT_HINT = "convert it to 8 or 16 bits a channel, or to float32 (PNG, TIFF)"


class DataError(ConfigError):
    """Images are missing, damaged or cannot be used; the message has all problems."""


class ImageError(ConfigError):
    """A file cannot be used as an image; the message says why."""


class SeveralPagesError(ImageError):
    """A TIFF has several pages; `image_reading.read_pages` reads them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFile:
    """An image in its file's own pixel format, upright as viewers show it, with the metadata that an output keeps."""

    pixels: np.ndarray  # (H, W) or (H, W, 3); uint8, uint16 or float32, black and white as the file has them
    alpha: np.ndarray | None = None  # (H, W) of the same type
    format: str  # by its content: one of SUFFIXES
    profile: bytes | None = None  # ICC, of as many channels as the pixels have
    resolution: tuple[float, float, int] | None = None  # across, down, unit: 1 none, 2 an inch, 3 a centimetre
    exif: bytes | None = None  # without the thumbnail, for an upright image
    colour_chunks: bytes = b""  # of a PNG: the whole chunks that define its colours without a profile
    quantisation: dict[int, list[int]] | None = None  # of a JPEG, with its subsampling
    subsampling: int = 0  # 0, 1, 2: 4:4:4, 4:2:2, 4:2:0
    compression: int = 1  # a TIFF's number for it
    notes: tuple[str, ...] = ()  # what of the file was left out

    @property
    def channels(self) -> int:
        """1 or 3, without alpha."""
        return 1 if self.pixels.ndim == 2 else 3


def png_chunks(content: bytes, to: bytes = b"IDAT") -> Iterator[tuple[bytes, bytes]]:
    """Yield the kind and the whole bytes of each chunk of a PNG before the first one of the kind `to`."""
    at = 8
    while at + 12 <= len(content) and (kind := content[at + 4 : at + 8]) != to:
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        yield kind, content[at:end]
        at = end
