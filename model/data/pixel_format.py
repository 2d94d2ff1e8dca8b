"""The meaning of pixel values: 8 bits, 16 bits or float32, from black to white, and as [-1, 1]."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..common.errors import ConfigError
from ..common.text import truncated_repr
from ..config import ValueRange

_DEFAULT_RANGES: dict[str, ValueRange] = {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0), "float32": (0.0, 1.0)}
DTYPE_NAMES = {"uint8": "8-bit", "uint16": "16-bit", "float32": "float32"}  # in messages
_LARGEST = 1e30  # limit of float32
_CLOSEST = 1e-4  # smallest distance of LOW and HIGH, as a share of the larger one


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """The pixel format of all images of a set. Raises ConfigError."""

    dtype: str = "uint8"  # or uint16, float32
    range: ValueRange | None = None  # black and white; None: 0 ... 255, 0 ... 65535 or 0 ... 1

    def __post_init__(self) -> None:
        if self.dtype not in _DEFAULT_RANGES:
            raise ConfigError(f"dtype={truncated_repr(self.dtype)}: must be one of {', '.join(_DEFAULT_RANGES)}")
        if self.dtype == "uint8" and self.range is not None:
            shown = format_range(self.range)
            raise ConfigError(f"range={shown}: is for 16-bit and float32 images, and not for 8-bit ones")
        if problem := range_problem(self.range):
            raise ConfigError(problem)
        if self.dtype == "uint16" and self.range is not None and not 0 <= self.low < self.high <= 65535:
            raise ConfigError(f"range={format_range(self.range)}: of 16-bit images must be within 0 ... 65535")

    @property
    def low(self) -> float:
        """Black."""
        return (self.range or _DEFAULT_RANGES[self.dtype])[0]

    @property
    def high(self) -> float:
        """White."""
        return (self.range or _DEFAULT_RANGES[self.dtype])[1]

    @property
    def half(self) -> float:
        """Half of the range: the distance that is 1 on [-1, 1]."""
        return (self.high - self.low) / 2

    @property
    def explicit(self) -> PixelFormat:
        """The same format with its range as numbers, unless it has 8 bits: records must not depend on a default."""
        return self if self.dtype == "uint8" else PixelFormat(self.dtype, (self.low, self.high))

    def to_unit(self, pixels: np.ndarray) -> np.ndarray:
        """Convert pixels of any shape from [low, high] to float32 in [-1, 1]."""
        values = pixels.astype(np.float32)
        if self.low:
            values -= np.float32(self.low)
        unit: np.ndarray = values / np.float32(self.half) - np.float32(1)
        return unit

    def from_unit(self, unit: np.ndarray) -> np.ndarray:
        """The inverse of to_unit; clips, and rounds to the nearest for integer types."""
        values = (np.clip(unit, -1, 1).astype(np.float32) + 1) * np.float32(self.half) + np.float32(self.low)
        pixels: np.ndarray = (values if self.dtype == "float32" else np.rint(values)).astype(self.dtype)
        return pixels

    def __str__(self) -> str:
        return DTYPE_NAMES[self.dtype] + ("" if self.dtype == "uint8" else f", {self.low:.9g} ... {self.high:.9g}")


def range_problem(value: ValueRange | None) -> str | None:
    """The error message for a range, or None if it is valid."""
    if value is None:
        return None
    low, high = value
    size = max(abs(low), abs(high))
    if math.isfinite(low) and math.isfinite(high) and size <= _LARGEST and high - low > _CLOSEST * size:
        return None
    return f"range={format_range(value)}: must be LOW HIGH, the second larger by a 10,000th or more, such as 0 4095"


def format_range(value: ValueRange) -> str:
    """Format a range as on the command line."""
    return " ".join(f"{bound:.9g}" for bound in value)


EIGHT_BITS = PixelFormat()
