"""Writes images in the format that their file had, with its profile, resolution and EXIF."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from PIL import Image
from PIL.ExifTags import Base

from .exif import load_exif
from .image_formats import WHITE, ImageFile, png_chunks
from .tiff import with_alpha, write_tiff

_WRITTEN = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "PPM")  # without loss, but for JPEG
_DTYPES = {"PNG": ("uint8", "uint16"), "TIFF": tuple(WHITE), "PPM": tuple(WHITE)}  # the other formats have uint8
_DTYPE_TEXTS = {"uint8": "8 bits", "uint16": "16 bits", "float32": "floats"}
_MAX_SIDES = {"JPEG": 65_500, "WEBP": 16_383}  # pixels, of libjpeg and libwebp
_MAX_JPEG_EXIF = 65_527  # bytes
_JPEG_QUALITY = 95  # where neither the input nor the user gives one
_PNG_HEADER = 33  # bytes of the signature and of IHDR


def output_format(image: ImageFile) -> str:
    """The image's own format if it can be written without loss or is JPEG; else PNG, or TIFF for floats."""
    if image.format in _WRITTEN and not format_problem(image, image.format):
        return image.format
    return "TIFF" if image.pixels.dtype == np.float32 else "PNG"


def format_problem(image: ImageFile, form: str) -> str:
    """Why the format cannot hold the image; empty if it can."""
    dtype = str(image.pixels.dtype)
    if dtype not in _DTYPES.get(form, ("uint8",)) or (form == "PPM" and dtype == "float32" and image.channels == 3):
        able = [other for other in _WRITTEN if dtype in _DTYPES.get(other, ("uint8",))]
        return f"{form} has no {_DTYPE_TEXTS[dtype]} a channel, as the image has; {' and '.join(able)} have"
    if image.alpha is not None and form in ("JPEG", "BMP", "PPM"):
        return f"{form} has no transparency, as the image has; PNG, TIFF and WEBP have"
    if form == "WEBP" and image.channels == 1 and image.profile:
        return f"{form} has colours only, and the image has a grey profile; PNG, TIFF and JPEG have grey"
    if max(image.pixels.shape[:2]) > _MAX_SIDES.get(form, math.inf):
        return f"{form} has sides of at most {_MAX_SIDES[form]} pixels; PNG and TIFF have longer ones"
    if form == "JPEG" and image.exif and len(image.exif) > _MAX_JPEG_EXIF:
        return f"its EXIF is longer than {form} takes; leave it out with --strip-metadata"
    return ""


def write_image(image: ImageFile, path: Path, form: str, *, quality: int | None = None) -> None:
    """Write an image in a format that can hold it.

    Args:
        form: a format for which `format_problem` is empty.
        quality: 1 to 100, of JPEG, and of a WebP that may lose. None: a JPEG has the quantisation and subsampling of
            its input, or else quality 95 and 4:4:4; all other formats lose nothing.

    Raises:
        OSError: the file cannot be written.
    """
    if form == "TIFF":
        write_tiff([image], path)
    elif form == "PNG":
        path.write_bytes(_encode_png(image))
    elif form == "PPM" and image.pixels.dtype == np.uint16:
        height, width = image.pixels.shape[:2]
        header = f"P{5 if image.channels == 1 else 6}\n{width} {height}\n65535\n"
        path.write_bytes(header.encode() + image.pixels.astype(">u2").tobytes())
    else:
        Image.fromarray(with_alpha(image)).save(path, form, **_save_options(image, form, quality))


def _encode_png(image: ImageFile) -> bytes:
    """Encode pixels of any type by imagecodecs, and metadata by Pillow, around one pixel."""
    metadata = io.BytesIO()
    Image.new("L", (1, 1)).save(metadata, "PNG", **_save_options(image, "PNG", None))
    chunks = b"".join(chunk for kind, chunk in png_chunks(metadata.getvalue()) if kind != b"IHDR")
    encoded = bytes(imagecodecs.png_encode(with_alpha(image)))
    return encoded[:_PNG_HEADER] + image.colour_chunks + chunks + encoded[_PNG_HEADER:]


def _save_options(image: ImageFile, form: str, quality: int | None) -> dict[str, Any]:
    """Keyword arguments of Pillow's `save`, as far as the format has them."""
    options: dict[str, Any] = {}
    if form in ("PNG", "JPEG", "WEBP"):
        options |= {"icc_profile": image.profile} if image.profile else {}
        options |= {"exif": image.exif} if image.exif else {}
    if form in ("PNG", "JPEG", "BMP") and image.resolution and image.resolution[2] != 1:
        inches = 2.54 if image.resolution[2] == 3 else 1
        options["dpi"] = (image.resolution[0] * inches, image.resolution[1] * inches)
    if form == "WEBP" and image.resolution:  # it has no other place for it
        exif = load_exif(image.exif)
        exif[Base.XResolution], exif[Base.YResolution], exif[Base.ResolutionUnit] = image.resolution
        options["exif"] = exif.tobytes()
    if form == "WEBP":
        options |= {"lossless": True, "exact": True} if quality is None else {"quality": quality}
    if form == "JPEG":
        keep_tables = image.quantisation and quality is None  # Pillow would scale the tables by a quality
        options |= {"qtables": image.quantisation} if keep_tables else {"quality": quality or _JPEG_QUALITY}
        options["subsampling"] = image.subsampling
    return options
