"""`hpo denoise`: its options, and what happens to one image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from model.common.errors import ConfigError
from model.common.text import did_you_mean, truncated_repr
from model.data.image_formats import SUFFIXES, ImageError, ImageFile, SeveralPagesError
from model.data.image_reading import read_image, read_pages
from model.data.image_writing import format_problem
from model.data.pixel_format import PixelFormat, range_problem
from model.denoise import Denoiser

FORMATS = {"png": "PNG", "tiff": "TIFF", "webp": "WEBP", "jpeg": "JPEG"}
_WHITES = (1, 255, 1023, 4095, 16383, 65535)  # usual maximum values: 1.0, and 8, 10, 12, 14 and 16 bits


@dataclass(frozen=True, kw_only=True, slots=True)
class DenoiseOptions:
    """The options of the command. Raises ConfigError with a line for each invalid one."""

    format: str | None = None  # one of FORMATS; None: as the input
    quality: int | None = None  # 1 to 100, of JPEG and WebP
    range: Sequence[float] | None = None  # black and white of 16-bit and float32 images; None: see pixel_format_of
    frames: str | None = None  # "all": each page of a TIFF
    strip_metadata: bool = False
    skip_bad: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        errors = []
        if self.format not in (None, *FORMATS):
            suggestion = did_you_mean(str(self.format), FORMATS)
            errors.append(f"format={truncated_repr(self.format)}: no such format. {suggestion}")
        if self.quality is not None and not (isinstance(self.quality, int) and 1 <= self.quality <= 100):
            errors.append(f"quality={truncated_repr(self.quality)}: must be a whole number from 1 to 100, such as 90")
        if self.range is not None and not all(isinstance(end, float) for end in self.range):
            errors.append(f"range={' '.join(map(str, self.range))}: must be two numbers, such as 0 4095")
        elif self.range is not None and (problem := range_problem((self.range[0], self.range[1]))):
            errors.append(problem)
        if self.frames not in (None, "all"):
            errors.append(f"frames={truncated_repr(self.frames)}: must be all")
        if errors:
            raise ConfigError("\n".join(errors))


def denoise_image(denoiser: Denoiser, image: ImageFile, value_range: Sequence[float] | None = None) -> ImageFile:
    """The same file with denoised pixels of the same type. Alpha is not changed. Raises DenoiseError."""
    pixel_format = pixel_format_of(image, value_range, denoiser)
    noisy = np.clip(pixel_format.to_unit(image.pixels), -1, 1)  # it rounds
    return replace(image, pixels=pixel_format.from_unit(denoiser(noisy)))


def pixel_format_of(image: ImageFile, value_range: Sequence[float] | None, denoiser: Denoiser | None) -> PixelFormat:
    """What the pixel values mean. Raises ConfigError if 16-bit images cannot have this range.

    Args:
        value_range: black and white of 16-bit and float32 images. None: those of the model's training images, if they
            had the same type, else the whole range of the type.
    """
    dtype = image.pixels.dtype
    if value_range and dtype != np.uint8:
        return PixelFormat(str(dtype), (value_range[0], value_range[1]))
    return denoiser.pixel_format(dtype) if denoiser else PixelFormat(str(dtype))


def read_image_pages(source: Path, options: DenoiseOptions) -> Iterator[ImageFile]:
    """The pages of a TIFF if the options say so, else the one image. Raises ImageError."""
    if options.frames:
        return read_pages(source)
    try:
        return iter([read_image(source)])
    except SeveralPagesError as error:
        raise ImageError(f"{source}: has several pages; --frames all denoises each of them") from error


def check_page(source: Path, page: ImageFile, form: str, number: int, pixel_format: PixelFormat) -> None:
    """Raise ImageError if a page cannot be denoised, or cannot be written as `form`."""
    if number and form != "TIFF":
        raise ImageError(f"{source}: has several pages, and {form} has one; drop --format, or use tiff")
    if problem := format_problem(page, form):
        raise ImageError(f"{source}: {problem}")
    not_finite = page.pixels.size - int(np.isfinite(page.pixels).sum())
    if not_finite:
        raise ImageError(f"{source}: {not_finite} values are NaN or infinite; put numbers there, such as a median's")
    least, most = float(page.pixels.min()), float(page.pixels.max())
    low, high = pixel_format.low, pixel_format.high
    if least < low or most > high:  # they would be clipped
        white = next((white for white in _WHITES if most <= white), most) if least >= 0 else most
        raise ImageError(
            f"{source}: has values from {least:g} to {most:g}, outside {low:g} (black) to {high:g} (white); set black "
            f"and white, such as --range {min(0, least):g} {white:g}"
        )


def describe_conversion(
    source: Path, page: ImageFile, form: str, options: DenoiseOptions, denoiser: Denoiser | None
) -> Iterator[str]:
    """What a user may not expect of how a page is read, denoised and written."""
    yield from page.notes
    if source.suffix.lower() not in SUFFIXES[page.format]:
        yield f"{page.format} by its content, although the name says otherwise"
    if form != page.format and options.format is None:
        yield f"{page.format}, written as {form}, which is lossless"
    if page.pixels.dtype != np.uint8:
        pixel_format = pixel_format_of(page, options.range, denoiser)
        low, high = pixel_format.low, pixel_format.high
        kind = "16 bits" if page.pixels.dtype == np.uint16 else "float32"
        yield f"{kind}, {low:g} is black and {high:g} is white (--range changes it)"
        white = next((white for white in _WHITES[1:] if page.pixels.max() <= white), high)
        if options.range is None and page.pixels.dtype == np.uint16 and white < high:
            yield f"no value above {white}; if that is white, use --range 0 {white}"
    if denoiser and page.channels != denoiser.channels:
        if page.channels == 1:
            yield "grey, and the model is for colour: it gets the plane three times, and the mean is written"
        else:
            yield "colour, and the model is for grey: each channel is denoised separately"
