"""TIFF by tifffile: the pages of a file with all their samples, and files of one or more pages."""

from __future__ import annotations

import io
import logging
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, TiffImagePlugin
from PIL.ExifTags import Base
from tifffile import EXTRASAMPLE, PHOTOMETRIC, SAMPLEFORMAT, TiffFile, TiffPage, TiffWriter

from .exif import DIRECTORIES, TEXTS, load_exif
from .image_formats import CONVERT_HINT, WHITE, ImageError, ImageFile

# Samples of a pixel, without alpha.
_COLOURS: dict[int, int] = {PHOTOMETRIC.MINISWHITE: 1, PHOTOMETRIC.MINISBLACK: 1, PHOTOMETRIC.RGB: 3}
# Lossless compressions that tifffile writes, by a TIFF's number for them; all others become deflate.
_COMPRESSIONS = {1: None, 5: "lzw", 8: "zlib", 32773: "packbits", 50000: "zstd"}

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # an ImageError reports what it logs of damaged files


def is_tiff(content: bytes) -> bool:
    """Whether the content begins as TIFF or BigTIFF does."""
    return content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


# --- reading --------------------------------------------------------------------------------------------------------


def image_pages(tiff: TiffFile) -> Iterator[tuple[int, TiffPage]]:
    """Yield number and page, lazily, without thumbnails, masks and the levels of a pyramid."""
    for number, page in enumerate(tiff.pages):
        assert isinstance(page, TiffPage)
        if not (page.is_reduced or page.is_mask):
            yield number, page


def needs_conversion(page: TiffPage) -> bool:
    """Whether the page must become grey or RGB (bilevel, palettes, CMYK), which Pillow does."""
    has_few_bits = page.bitspersample < 8 or (page.bitspersample == 8 and page.photometric not in _COLOURS)
    return page.sampleformat == SAMPLEFORMAT.UINT and has_few_bits


def read_page_exif(page: TiffPage, content: bytes) -> Image.Exif:
    """EXIF of a page; content: of the whole file."""
    exif = Image.Exif()
    exif.endian, exif.bigtiff = page.parent.byteorder, page.parent.is_bigtiff
    exif.load_from_fp(io.BytesIO(content), page.offset)
    return exif


def read_page_pixels(path: Path, page: TiffPage) -> np.ndarray:
    """Grey or RGB pixels, (H, W) or (H, W, samples). Raises ImageError for other samples."""
    is_negative = page.photometric == PHOTOMETRIC.MINISWHITE
    has_known_type = str(page.dtype) in WHITE and page.bitspersample in (8, 16, 32) and page.imagedepth == 1
    extra = page.samplesperpixel - _COLOURS.get(page.photometric, 0)
    if not has_known_type or page.photometric not in _COLOURS or extra not in ((0,) if is_negative else (0, 1)):
        kind = f"{page.samplesperpixel} x {page.dtype} of {page.bitspersample} bits a pixel"
        raise ImageError(f"{path}: {kind} ({getattr(page.photometric, 'name', page.photometric)}); {CONVERT_HINT}")
    pixels = np.asarray(page.asarray())
    if page.axes == "SYX":
        pixels = np.moveaxis(pixels, 0, -1)
    white = WHITE[str(page.dtype)]
    if page.extrasamples and page.extrasamples[0] == EXTRASAMPLE.ASSOCALPHA:
        pixels = _unmultiply_alpha(pixels, white)
    return np.asarray(white - pixels if is_negative else pixels, page.dtype)


def _unmultiply_alpha(pixels: np.ndarray, white: int) -> np.ndarray:
    """Divide the colours by the alpha that they were multiplied with."""
    alpha = pixels[..., -1:]
    colours = pixels[..., :-1] / np.where(alpha == 0, white, alpha) * white
    if pixels.dtype != np.float32:
        colours = np.rint(np.clip(colours, 0, white))
    return np.concatenate([colours.astype(pixels.dtype), alpha], axis=2)


# --- writing --------------------------------------------------------------------------------------------------------


def write_tiff(images: Iterable[ImageFile], path: Path) -> None:
    """Write one page for each image in its own pixel format; the file has the first image's EXIF. Raises OSError."""
    first: Image.Exif | None = None
    with TiffWriter(path, byteorder="<") as file:
        for image in images:
            exif = load_exif(image.exif)
            first = exif if first is None else first
            texts = {tag: exif[tag] for tag in TEXTS if tag in exif}
            compression = _COMPRESSIONS.get(image.compression, "zlib")
            file.write(
                with_alpha(image),
                photometric="minisblack" if image.channels == 1 else "rgb",
                planarconfig="contig" if image.channels == 3 or image.alpha is not None else None,
                extrasamples=None if image.alpha is None else ["unassalpha"],
                compression=compression,
                predictor=compression in ("lzw", "zlib", "zstd") and image.pixels.dtype != np.float32,
                iccprofile=image.profile,
                resolution=image.resolution and image.resolution[:2],
                resolutionunit=image.resolution and image.resolution[2],
                description=texts.pop(Base.ImageDescription, None),
                software=texts.pop(Base.Software, False),
                extratags=[(int(tag), "s", 0, text, True) for tag, text in texts.items()],
                metadata=None,
            )
    if first is not None and any(first.get_ifd(directory) for directory in DIRECTORIES):
        _append_exif(path, first)


def with_alpha(image: ImageFile) -> np.ndarray:
    """(H, W), or (H, W, channels) with alpha behind the colours."""
    pixels = image.pixels if image.alpha is None else np.dstack([image.pixels, image.alpha])
    return np.array(pixels, order="C")  # a copy: imagecodecs needs the strides of an array of that shape


def _append_exif(path: Path, exif: Image.Exif) -> None:
    """Append EXIF and GPS directories, which tifffile does not write, and a new first directory that names them."""
    with path.open("r+b") as file:
        file.seek(4)
        (begin,) = struct.unpack("<I", file.read(4))
        file.seek(begin)
        (count,) = struct.unpack("<H", file.read(2))
        entries = [file.read(12) for _ in range(count)]
        following = file.read(4)
        for part in DIRECTORIES:
            directory = TiffImagePlugin.ImageFileDirectory_v2(group=part)
            directory.update(exif.get_ifd(part))
            if directory:
                at = _seek_even_end(file)
                file.write(directory.tobytes(at))
                entries.append(struct.pack("<HHII", part, 4, 1, at))
        at = _seek_even_end(file)
        entries.sort(key=lambda entry: int.from_bytes(entry[:2], "little"))
        file.write(struct.pack("<H", len(entries)) + b"".join(entries) + following)
        file.seek(4)
        file.write(struct.pack("<I", at))


def _seek_even_end(file: BinaryIO) -> int:
    """Where a TIFF's next directory begins: at an even offset."""
    end = file.seek(0, io.SEEK_END)
    return end + file.write(b"\0" * (end % 2))
