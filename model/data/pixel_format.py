"""What the numbers of an image mean: 8 bits, 16 bits or float32, between black and white, and as [-1, 1]."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..common.errors import ConfigError
from ..common.text import truncated_repr
from ..config import ValueRange

_WHOLE: dict[str, ValueRange] = {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0), "float32": (0.0, 1.0)}
_TOLD = {"uint8": "8-bit", "uint16": "16-bit", "float32": "float32"}
_LARGEST, _CLOSEST = 1e30, 1e-4  # what float32 tells apart well: of a value; of LOW and HIGH beside the larger one


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """Of all images of a set. Raises ConfigError.

    Args:
        dtype: uint8, uint16 or float32.
        range: what is black and what is white; None: 0 ... 255, 0 ... 65535, 0 ... 1.
    """

    dtype: str = "uint8"
    range: ValueRange | None = None

    def __post_init__(self) -> None:
        if self.dtype not in _WHOLE:
            raise ConfigError(f"dtype={truncated_repr(self.dtype)}: must be one of {', '.join(_WHOLE)}")
        if self.dtype == "uint8" and self.range is not None:
            raise ConfigError(
                f"range={format_range(self.range)}: is for 16-bit and float32 images, and not for 8-bit ones"
            )
        if mistake := range_problem(self.range):
            raise ConfigError(mistake)
        if self.dtype == "uint16" and self.range is not None and not 0 <= self.low < self.high <= _WHOLE["uint16"][1]:
            raise ConfigError(f"range={format_range(self.range)}: of 16-bit images must be within 0 ... 65535")

    @property
    def low(self) -> float:
        """Black."""
        return (self.range or _WHOLE[self.dtype])[0]

    @property
    def high(self) -> float:
        """White."""
        return (self.range or _WHOLE[self.dtype])[1]

    @property
    def half(self) -> float:
        """Of the range: what 1 is on [-1, 1]."""
        return (self.high - self.low) / 2

    @property
    def explicit(self) -> PixelFormat:
        """The same, with its range in numbers where it has not 8 bits: for records that outlive a default."""
        return self if self.dtype == "uint8" else PixelFormat(self.dtype, (self.low, self.high))

    def to_unit(self, pixels: np.ndarray) -> np.ndarray:
        """Of any shape, in [low, high], to float32 in [-1, 1]."""
        values = pixels.astype(np.float32)
        if self.low:
            values -= np.float32(self.low)
        unit: np.ndarray = values / np.float32(self.half) - np.float32(1)
        return unit

    def from_unit(self, unit: np.ndarray) -> np.ndarray:
        """The inverse: clipped, and rounded to the nearest where the values are whole numbers."""
        values = (np.clip(unit, -1, 1).astype(np.float32) + 1) * np.float32(self.half) + np.float32(self.low)
        pixels: np.ndarray = (values if self.dtype == "float32" else np.rint(values)).astype(self.dtype)
        return pixels

    @staticmethod
    def dtype_name(dtype: str) -> str:
        """For people."""
        return _TOLD[dtype]

    def __str__(self) -> str:
        return _TOLD[self.dtype] + ("" if self.dtype == "uint8" else f", {self.low:.9g} ... {self.high:.9g}")


def range_problem(value: ValueRange | None) -> str | None:
    """The broken rule and the value, or None."""
    if value is None:
        return None
    low, high = value
    size = max(abs(low), abs(high))
    if math.isfinite(low) and math.isfinite(high) and size <= _LARGEST and high - low > _CLOSEST * size:
        return None
    return f"range={format_range(value)}: must be LOW HIGH, the second the larger by a 10,000th or more, such as 0 4095"


def format_range(value: ValueRange) -> str:
    """As it is typed."""
    return " ".join(f"{bound:.9g}" for bound in value)


EIGHT_BITS = PixelFormat()
