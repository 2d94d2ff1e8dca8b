"""Checks that the images of a set have one pixel format, and values within its range."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from ..common.errors import ConfigError
from ..config import ValueRange
from .folder_layout import list_some
from .image_formats import ImageError
from .pixel_format import DTYPE_NAMES, PixelFormat, format_range

_DARK = 4  # white is so many times the brightest pixel: 14 bits in 16, or fewer


class PixelChecker:
    """Checks images one by one, and collects messages on all of them.

    Args:
        value_range: black and white, as the user gave them; None: the pixel type's own.
    """

    def __init__(self, value_range: ValueRange | None) -> None:
        self._range = value_range
        self._paths: dict[str, list[str]] = defaultdict(list)  # by the type of their pixels
        self._clipped: list[str] = []  # paths of images
        self._low, self._high = math.inf, -math.inf  # of all images but 8-bit ones, before clipping

    @property
    def pixel_format(self) -> PixelFormat:
        """Of all images, once `problems` is empty."""
        return PixelFormat(next(iter(self._paths)), self._range)

    def clip_to_range(self, pixels: np.ndarray, path: str) -> np.ndarray:
        """Clip an image of any shape to the user's range. Raises ImageError for values that cannot be used."""
        self._paths[str(pixels.dtype)].append(path)
        try:
            pixel_format = PixelFormat(str(pixels.dtype), self._range)
        except ConfigError as error:
            raise ImageError(f"{path}: {error}") from None
        if pixels.dtype == np.uint8:
            return pixels
        if count := int(np.count_nonzero(~np.isfinite(pixels))):
            raise ImageError(f"{path}: {count} values are NaN or infinite; put numbers there, such as a median's")
        low, high = float(pixels.min()), float(pixels.max())
        self._low, self._high = min(self._low, low), max(self._high, high)
        if pixel_format.low <= low and high <= pixel_format.high:
            return pixels
        values = f"{path}: has values from {low:.6g} to {high:.6g}"
        if self._range is None:
            raise ImageError(f"{values}; the range of float32 is 0 ... 1; set another one with --range LOW HIGH")
        clipped: np.ndarray = np.clip(pixels, pixel_format.low, pixel_format.high).astype(pixels.dtype)
        if clipped.min() == clipped.max() and low < high:
            raise ImageError(f"{values}, all of them beyond --range {format_range(self._range)}")
        self._clipped.append(path)
        return clipped

    def problems(self) -> list[str]:
        """Error messages for images of several pixel types."""
        return mixed_kinds((path, DTYPE_NAMES[dtype]) for dtype, paths in self._paths.items() for path in paths)

    def warnings(self) -> list[str]:
        """Messages on clipped values, and on a range far above all values."""
        lines, pixel_format = [], self.pixel_format
        values = f"{self._low:.6g} ... {self._high:.6g}"
        if self._clipped:
            names = list_some(self._clipped)
            lines.append(f"values beyond the range are clipped to it (all are {values}): {names}")
        width = pixel_format.high - pixel_format.low
        if pixel_format.dtype != "uint8" and self._high - pixel_format.low < width / _DARK:
            lines.append(
                f"all values are {values}, a small part of the range, by which noise is measured; set black and white "
                "with --range LOW HIGH"
            )
        return lines


def mixed_kinds(kinds: Iterable[tuple[str, str]]) -> list[str]:
    """A message if the images, (name, kind) each, are not all of one kind, with names of the rarest; else none."""
    names: dict[str, list[str]] = defaultdict(list)
    for name, kind in kinds:
        names[kind].append(name)
    if len(names) < 2:
        return []
    counts = [(len(names[kind]), kind) for kind in sorted(names, key=str.casefold)]
    counted = " and ".join([f"{counts[0][0]} images are {counts[0][1]}", *(f"{n} {kind}" for n, kind in counts[1:])])
    rarest = min(names, key=lambda kind: len(names[kind]))
    return [f"{counted}; all must be of one kind. {rarest}: {list_some(names[rarest])}"]
