"""Reads image files: pixels in the file's own format, upright, and metadata."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from PIL import Image, JpegImagePlugin, UnidentifiedImageError
from PIL.ExifTags import Base
from tifffile import TiffFile, TiffPage

from . import tiff
from .exif import keep_description, read_resolution
from .image_formats import CONVERT_HINT, SUFFIXES, ImageError, ImageFile, SeveralPagesError, png_chunks

MAX_PIXELS = 100_000_000  # of a page, read from the header: a file of 100 kB can unpack to gigabytes
MAX_BYTES = 5 * MAX_PIXELS  # of a file: uncompressed RGBA of 8 bits, with room for metadata
_FORMATS = tuple(SUFFIXES)
_SPLIT_HINT = "split it into single images"
_SECOND_PICTURE = "a second picture in the file (a gain map, a depth map or a preview) is left out"
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_BIT_DEPTH = 24  # the offset of this byte
_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_COLOUR_CHUNKS = (b"cICP", b"sRGB", b"gAMA", b"cHRM")  # they say what a PNG's numbers mean where it has no profile
_PPM_GAP = rb"(?:\s|#[^\n]*\n)+"
_PPM_HEADER = re.compile(rb"(?P<kind>P[2356])%b(?P<width>\d+)%b(?P<height>\d+)%b(?P<white>\d+)\s" % ((_PPM_GAP,) * 3))
_MAYBE_DEEP: dict[str, Callable[[bytes], Any]] = {
    "JPEG2000": imagecodecs.jpeg2k_decode,
    "AVIF": imagecodecs.avif_decode,
}
# By EXIF's orientation: turns the pixels as viewers show them.
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda image: np.rot90(image, 2),
    4: np.flipud,
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: np.rot90(image, 2).swapaxes(0, 1),
    8: np.rot90,
}
_SIDEWAYS = (5, 6, 7, 8)


def read_image(path: Path, content: bytes | None = None) -> ImageFile:
    """Read the one image of a file, by its content whatever its name.

    Palettes and CMYK become RGB, bilevel becomes grey. Of a phone's JPEG with several pictures the first is read.

    Args:
        path: of the file, for error messages if `content` is given.
        content: of a file that is not on this machine; None: read it.

    Raises:
        ImageError: several frames (for a TIFF SeveralPagesError), too many pixels, another pixel format than 8 bits,
            16 bits or float32, or not an image at all.
    """
    with _clear_errors(path):
        content = read_file(path) if content is None else content
        if not tiff.is_tiff(content):
            return _read_single(path, content)
        with TiffFile(io.BytesIO(content)) as file:
            pages = tiff.image_pages(file)
            first = next(pages, None)
            if first is None:
                raise ImageError(f"{path}: has no image")
            if next(pages, None):
                raise SeveralPagesError(f"{path}: has several frames; {_SPLIT_HINT}")
            return _read_tiff_page(path, content, *first)


def read_pages(path: Path) -> Iterator[ImageFile]:
    """Yield every page of a TIFF; of other files their one image. Raises ImageError."""
    with _clear_errors(path):
        content = read_file(path)
        if not tiff.is_tiff(content):
            yield _read_single(path, content)
            return
        with TiffFile(io.BytesIO(content)) as file:
            for number, page in tiff.image_pages(file):
                yield _read_tiff_page(path, content, number, page)


def read_file(path: Path) -> bytes:
    """Read a file's bytes. Raises ImageError for a path that is not a file, or a file that is too large."""
    if path.exists() and not path.is_file():  # reading a pipe would wait, a device would never end
        raise ImageError(f"{path}: is not a file")
    check_size(path, path.stat().st_size)
    return path.read_bytes()


def check_size(path: object, size: int) -> None:
    """Raise ImageError for more than MAX_BYTES."""
    if size > MAX_BYTES:
        raise ImageError(f"{path}: has {size:,} bytes, above {MAX_BYTES:,}; compress it, or split it")


@contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    """Turn the decoders' errors into ImageErrors that name the file."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: not an image of the formats {', '.join(_FORMATS)}") from error
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(f"{path}: does not fit in this machine's memory") from error
    except Exception as error:  # damaged files raise anything from OSError and SyntaxError to struct.error
        raise ImageError(f"{path}: cannot be read ({error})") from error


def _check_pixels(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(f"{path}: {width}x{height} is above {MAX_PIXELS} pixels")


def _read_tiff_page(path: Path, content: bytes, number: int, page: TiffPage) -> ImageFile:
    """Read grey and RGB by tifffile, which keeps all samples, and palettes and CMYK by Pillow."""
    _check_pixels(path, page.imagewidth, page.imagelength)
    if tiff.needs_conversion(page):
        return _read_by_pillow(path, content, page, number)
    return _upright(
        tiff.read_page_pixels(path, page),
        partial(tiff.read_page_exif, page, content),
        format="TIFF",
        profile=page.iccprofile,
        compression=int(page.compression),
    )


def _read_single(path: Path, content: bytes) -> ImageFile:
    """Read a file with one image. Of a PNG with damaged metadata Pillow reads nothing; viewers show its pixels."""
    try:
        return _read_by_pillow(path, content)
    except ImageError:  # it is a ValueError
        raise
    except (UnidentifiedImageError, SyntaxError, ValueError):
        bare = b"".join(chunk for kind, chunk in png_chunks(content, to=b"") if kind in _PIXEL_CHUNKS)
        if not content.startswith(_PNG_MAGIC) or len(bare) + len(_PNG_MAGIC) == len(content):
            raise
        image = _read_by_pillow(path, _PNG_MAGIC + bare)
        return replace(image, notes=(*image.notes, "damaged metadata is left out"))


def _read_by_pillow(path: Path, content: bytes, page: TiffPage | None = None, number: int = 0) -> ImageFile:
    """Read one image. page, number: of a TIFF; without them several frames raise ImageError."""
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        if page:
            image.seek(number)
        else:
            _check_pixels(path, image.width, image.height)
        has_second_picture = image.format == "MPO"  # a phone's
        if not page and not has_second_picture and getattr(image, "is_animated", False):
            raise ImageError(f"{path}: has several frames; {_SPLIT_HINT}")
        form = "JPEG" if has_second_picture else str(image.format)
        pixels = _read_deep(path, content, form)
        if pixels is None:
            image.load()
        jpeg = image if isinstance(image, JpegImagePlugin.JpegImageFile) else None
        dots = image.info.get("dpi")
        chunks = png_chunks(content) if form == "PNG" else ()
        return _upright(
            np.asarray(_to_grey_or_rgb(path, image)) if pixels is None else pixels,
            image.getexif,
            format=form,
            profile=image.info.get("icc_profile"),
            resolution=(float(dots[0]), float(dots[1]), 2) if dots and not page and min(dots) > 0 else None,
            colour_chunks=b"".join(chunk for kind, chunk in chunks if kind in _COLOUR_CHUNKS),
            quantisation=jpeg.quantization if jpeg else None,
            subsampling=max(0, JpegImagePlugin.get_sampling(jpeg)) if jpeg else 0,
            compression=int(page.compression) if page else 1,
            notes=(_SECOND_PICTURE,) if has_second_picture else (),
        )


def _to_grey_or_rgb(path: Path, image: Image.Image) -> Image.Image:
    """Convert to mode L, LA, RGB or RGBA; F, of a PFM, stays."""
    has_clear_colour = "transparency" in image.info
    if image.mode in ("LA", "RGBA", "F") or (image.mode in ("L", "RGB") and not has_clear_colour):
        return image
    if image.mode in ("1", "L"):
        return image.convert("LA" if has_clear_colour else "L")
    if image.mode in ("RGB", "P", "CMYK", "YCbCr", "RGBX"):
        return image.convert("RGBA" if has_clear_colour else "RGB")
    if image.mode in ("La", "RGBa", "PA"):
        return image.convert("LA" if image.mode == "La" else "RGBA")
    raise ImageError(f"{path}: {image.mode} pixels; {CONVERT_HINT}")


def _read_deep(path: Path, content: bytes, form: str) -> np.ndarray | None:
    """Read pixels of 16 bits, which Pillow would cut to 8 where they have several channels. None: they have 8 bits."""
    if form == "PNG" and content[_PNG_BIT_DEPTH] == 16:
        return np.asarray(imagecodecs.png_decode(content))
    if form == "PPM" and (header := _PPM_HEADER.match(content)) and int(header["white"]) > 255:
        if header["kind"] in b"P2 P3":
            raise ImageError(f"{path}: {form} text with numbers above 255; {CONVERT_HINT}")
        shape = (int(header["height"]), int(header["width"]), 3 if header["kind"] == b"P6" else 1)
        words = np.frombuffer(content, ">u2", math.prod(shape), header.end()).reshape(shape)
        return np.rint(words * (65535 / int(header["white"]))).astype(np.uint16)
    if form in _MAYBE_DEEP and (dtype := _MAYBE_DEEP[form](content).dtype) != np.uint8:
        raise ImageError(f"{path}: {form} of {dtype}; {CONVERT_HINT}")
    return None


def _upright(pixels: np.ndarray, read_exif: Callable[[], Image.Exif], **fields: Any) -> ImageFile:
    """Turn pixels, (H, W) or (H, W, 1 to 4), as EXIF says, and separate colours and alpha.

    Args:
        read_exif: may raise anything where EXIF is damaged.
        fields: other fields of ImageFile.
    """
    planes = np.atleast_3d(pixels)
    orientation, resolution, exif = 1, fields.pop("resolution", None), None
    try:
        with warnings.catch_warnings(action="ignore"):
            read = read_exif()
            orientation = read.get(Base.Orientation, 1)
            resolution = resolution or read_resolution(read)
            exif = keep_description(read, *planes.shape[:2][:: -1 if orientation in _SIDEWAYS else 1])
    except Exception:  # damaged EXIF raises anything; the pixels are whole
        fields["notes"] = (*fields.get("notes", ()), "damaged EXIF is left out")
    if resolution and orientation in _SIDEWAYS:
        resolution = (resolution[1], resolution[0], resolution[2])
    channels = 3 if planes.shape[2] >= 3 else 1
    if fields.get("profile") and fields["profile"][16:20] != {1: b"GRAY", 3: b"RGB "}[channels]:
        fields["profile"] = None  # it was for CMYK or a grey palette, and the pixels have been converted
    turned = _TURNS[orientation](planes) if orientation in _TURNS else planes
    colours, alpha = turned[..., :channels], turned[..., channels:]
    return ImageFile(
        pixels=np.ascontiguousarray(colours if channels == 3 else colours[..., 0]),
        alpha=np.ascontiguousarray(alpha[..., 0]) if alpha.shape[2] else None,
        resolution=resolution,
        exif=exif,
        **fields,
    )
