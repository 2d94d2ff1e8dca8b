"""Strips of pictures side by side, such as input, ground truth and prediction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

SCALE = 3  # enlarges the pixels of small pictures
_GAP = 2  # white pixels between pictures


def draw_strip(columns: Sequence[np.ndarray], *, scale: int = SCALE) -> Image.Image:
    """Draw a column for each array, (N, C, H, W) float in [-1, 1] with C 1 or 3; `scale` enlarges every pixel."""
    num_images, channels, height, width = columns[0].shape
    rows = num_images * (height + _GAP) - _GAP
    sheet = np.full((rows, len(columns) * (width + _GAP) - _GAP, channels), 255, np.uint8)
    for x, column in enumerate(columns):
        for y, image in enumerate(to_uint8(column)):
            top, left = y * (height + _GAP), x * (width + _GAP)
            sheet[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    picture = Image.fromarray(sheet[:, :, 0] if channels == 1 else sheet)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def split_strip(pixels: np.ndarray, columns: int = 3) -> list[np.ndarray]:
    """Cut a strip of scale 1 with square pictures, (H, W) or (H, W, 3), into `columns` columns.

    Returns:
        For each column (N, S, S) or (N, S, S, 3).

    Raises:
        ValueError: no such strip has this size.
    """
    side, rest = divmod(pixels.shape[1] + _GAP, columns)
    count, left = divmod(pixels.shape[0] + _GAP, side)
    if rest or left or not count:
        raise ValueError(f"{pixels.shape[1]}x{pixels.shape[0]} pixels are not {columns} columns of square pictures")
    starts = range(0, columns * side, side)
    return [np.stack([pixels[y * side :, x:][: side - _GAP, : side - _GAP] for y in range(count)]) for x in starts]


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Convert [-1, 1] to 0 ... 255, rounded to the nearest."""
    pixels: np.ndarray = np.rint((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)
    return pixels
