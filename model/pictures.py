"""Image files, read with care; strips of pictures side by side: input, prediction, ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from model.config import ConfigError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")
MAX_PIXELS = 100_000_000  # read off the header: a file of 100 kB can unpack to gigabytes
MAX_BYTES = 5 * MAX_PIXELS  # of a file: RGBA as it is, and room for what else lies in it
_FORMATS = ("PNG", "JPEG", "TIFF", "WEBP")
SCALE = 3  # of a strip's pixels, for the eye
_GAP = 2  # white pixels between pictures


class ImageError(ConfigError):
    """A file that is no image to be used; the message says why."""


def open_image(path: Path, content: BinaryIO | None = None) -> Image.Image:
    """PNG, JPEG, TIFF or WebP as mode L, RGB, LA or RGBA. Palettes and CMYK become RGB, bilevel becomes grey.

    content: of a file that is not on this machine. Raises ImageError: for more than 8 bits, several frames, too many
    pixels, or what is no such image.
    """
    try:
        with Image.open(content or path, formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"{path}: {image.width}x{image.height} is above {MAX_PIXELS} pixels")
            if _has_frames(image):
                raise ImageError(f"{path}: has several frames; split it into single images")
            if image.mode in ("L", "RGB", "LA", "RGBA"):
                return image.copy()
            if image.mode == "1":
                return image.convert("L")
            if image.mode in ("P", "CMYK", "YCbCr"):
                return image.convert("RGBA" if "transparency" in image.info else "RGB")
            raise ImageError(f"{path}: {image.mode} pixels; convert it to 8 bits a channel")
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path}: no image of the formats {', '.join(_FORMATS)} ({error})") from error
    except ImageError:
        raise
    except Exception as error:  # Pillow's, for damaged files: of OSError and SyntaxError to struct.error
        raise ImageError(f"{path}: cannot be read ({error})") from error


def _has_frames(image: Image.Image) -> bool:
    """Without counting them: of a TIFF each would be read."""
    try:
        image.seek(1)
    except EOFError:
        return False
    return True


def strip(columns: Sequence[np.ndarray], *, scale: int = SCALE) -> Image.Image:
    """One row for each image, one column for each array (N, C, H, W) float in [-1, 1]; C is 1 or 3."""
    num_images, channels, height, width = columns[0].shape
    rows = num_images * (height + _GAP) - _GAP
    sheet = np.full((rows, len(columns) * (width + _GAP) - _GAP, channels), 255, np.uint8)
    for x, column in enumerate(columns):
        for y, image in enumerate(to_uint8(column)):
            top, left = y * (height + _GAP), x * (width + _GAP)
            sheet[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    picture = Image.fromarray(sheet[:, :, 0] if channels == 1 else sheet)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def cells(pixels: np.ndarray, columns: int = 3) -> list[np.ndarray]:
    """The columns of a strip of scale 1 whose pictures are square: uint8 (N, S, S), or (N, S, S, 3). pixels: the
    strip's, (H, W) or (H, W, 3). Raises ValueError where its size is that of none."""
    side, rest = divmod(pixels.shape[1] + _GAP, columns)
    count, left = divmod(pixels.shape[0] + _GAP, side)
    if rest or left or not count:
        raise ValueError(f"{pixels.shape[1]}x{pixels.shape[0]} pixels are no {columns} columns of square pictures")
    starts = range(0, columns * side, side)
    return [np.stack([pixels[y * side :, x:][: side - _GAP, : side - _GAP] for y in range(count)]) for x in starts]


def to_uint8(images: np.ndarray) -> np.ndarray:
    """[-1, 1] to 0 ... 255, rounded to the nearest."""
    pixels: np.ndarray = np.rint((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)
    return pixels
