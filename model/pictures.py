"""Strips of pictures side by side: input, prediction, ground truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

_GAP = 2  # white pixels between pictures


def strip(columns: Sequence[np.ndarray], *, scale: int = 3) -> Image.Image:
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


def to_uint8(images: np.ndarray) -> np.ndarray:
    """[-1, 1] to 0 ... 255, rounded to the nearest."""
    pixels: np.ndarray = np.rint((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)
    return pixels
