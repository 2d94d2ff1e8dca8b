"""Image files as people have them -> arrays at the file's own depth, upright, with what else it says; and back."""

from __future__ import annotations

import io
import itertools
import logging
import math
import re
import struct
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
from PIL import Image, JpegImagePlugin, TiffImagePlugin, UnidentifiedImageError
from tifffile import EXTRASAMPLE, PHOTOMETRIC, SAMPLEFORMAT, TiffFile, TiffPage, TiffWriter

from ..common.errors import ConfigError

SUFFIXES = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "GIF": (".gif",),
    "JPEG2000": (".jp2", ".j2k"),
    "AVIF": (".avif",),
}
IMAGE_SUFFIXES = tuple(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
MAX_PIXELS = 100_000_000  # of a page, read off the header: a file of 100 kB can unpack to gigabytes
MAX_BYTES = 5 * MAX_PIXELS  # of a file: RGBA of 8 bits as it is, and room for what else lies in it
# Of what Pillow knows, the formats of pixels alone. Left out are what runs a program or draws (EPS, PDF, WMF), what has
# layers or several sizes (PSD, icons), and old or scientific formats that Pillow reads in part (FITS, HDF5, ...).
_FORMATS = tuple(SUFFIXES)
_SPLIT, _CONVERT = "split it into single images", "convert it to 8 or 16 bits a channel, or to float32 (PNG, TIFF)"
_SECOND_PICTURE = "a second picture in the file (a gain map, a depth map or a preview) is left out"
_WHITE = {"uint8": 255, "uint16": 65535, "float32": 1}
_DEPTHS = {"PNG": ("uint8", "uint16"), "TIFF": tuple(_WHITE), "PPM": tuple(_WHITE)}  # of the others: uint8
_ORIENTATION, _EXIF, _GPS, _INTEROP = 0x0112, 0x8769, 0x8825, 0xA005
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296
_DESCRIPTION, _MAKE, _MODEL, _SOFTWARE, _DATE, _ARTIST, _COPYRIGHT = 270, 271, 272, 305, 306, 315, 33432
_TEXTS = (_DESCRIPTION, _MAKE, _MODEL, _SOFTWARE, _DATE, _ARTIST, _COPYRIGHT)
_WIDTH, _HEIGHT = 0xA002, 0xA003  # of the pixels, in the EXIF of cameras
_COLOUR_CHUNKS = (b"cICP", b"sRGB", b"gAMA", b"cHRM")  # of a PNG: what its numbers mean where it has no profile

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it says of damaged files, an ImageError says


class ImageError(ConfigError):
    """A file that is no image to be used; the message says why."""


class SeveralPagesError(ImageError):
    """A TIFF that `read_pages` takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFile:
    """An image at its file's own depth, upright as viewers show it; and what a file with other pixels is to keep."""

    pixels: np.ndarray  # (H, W) or (H, W, 3); uint8, uint16 or float32, black and white as the file has them
    alpha: np.ndarray | None = None  # (H, W) of the same type
    format: str  # by its content: one of SUFFIXES
    profile: bytes | None = None  # ICC, of as many channels as the pixels have
    resolution: tuple[float, float, int] | None = None  # across, down, unit: 1 none, 2 an inch, 3 a centimetre
    exif: bytes | None = None  # without the thumbnail, for an upright image
    colour_chunks: bytes = b""  # of a PNG, whole
    quantisation: dict[int, list[int]] | None = None  # of a JPEG, with its subsampling
    subsampling: int = 0  # 4:4:4, 4:2:2, 4:2:0
    compression: int = 1  # the number that a TIFF has for it
    notes: tuple[str, ...] = ()  # what of the file is not in here

    @property
    def channels(self) -> int:
        """1 or 3, without alpha."""
        return 1 if self.pixels.ndim == 2 else 3


def read_image(path: Path, content: bytes | None = None) -> ImageFile:
    """The one image of a file, by its content whatever its name.

    Palettes and CMYK become RGB, bilevel becomes grey. Of a phone's JPEG with several pictures the first is read.
    content: of a file that is not on this machine. Raises ImageError: for several frames (of a TIFF
    SeveralPagesError), too many pixels, another depth than 8 or 16 bits or float32, or what is no such image.
    """
    with _reading(path):
        content = read_file(path) if content is None else content
        if not _is_tiff(content):
            return _other(path, content)
        with TiffFile(io.BytesIO(content)) as tiff:
            pages = _tiff_pages(tiff)
            first = next(pages, None)
            if first is None:
                raise ImageError(f"{path}: has no image")
            if next(pages, None):
                raise SeveralPagesError(f"{path}: has several frames; {_SPLIT}")
            return _tiff_page(path, content, *first)


def read_pages(path: Path) -> Iterator[ImageFile]:
    """Every page of a TIFF, one after another; of other files as read_image. Raises ImageError."""
    with _reading(path):
        content = read_file(path)
        if not _is_tiff(content):
            yield _other(path, content)
            return
        with TiffFile(io.BytesIO(content)) as tiff:
            for number, page in _tiff_pages(tiff):
                yield _tiff_page(path, content, number, page)


def read_file(path: Path) -> bytes:
    """Raises ImageError where it is no file, or too large."""
    if path.exists() and not path.is_file():  # a pipe would be waited for, a device be read for ever
        raise ImageError(f"{path}: is no file")
    check_size(path, path.stat().st_size)
    return path.read_bytes()


def check_size(path: object, size: int) -> None:
    """Raises ImageError for more bytes than are read."""
    if size > MAX_BYTES:
        raise ImageError(f"{path}: has {size:,} bytes, above {MAX_BYTES:,}; compress it, or split it")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: no image of the formats {', '.join(_FORMATS)}") from error
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(f"{path}: does not fit in this machine's memory") from error
    except Exception as error:  # the decoders', for damaged files: of OSError and SyntaxError to struct.error
        raise ImageError(f"{path}: cannot be read ({error})") from error


def _check_pixels(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(f"{path}: {width}x{height} is above {MAX_PIXELS} pixels")


def _is_tiff(content: bytes) -> bool:
    return content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


# --- pixels ---------------------------------------------------------------------------------------------------------


def _other(path: Path, content: bytes) -> ImageFile:
    """Of a PNG whose pixels are whole, but not what it says beside them, Pillow reads nothing, and all viewers do."""
    try:
        return _by_pillow(path, content)
    except ImageError:  # which is a ValueError
        raise
    except (UnidentifiedImageError, SyntaxError, ValueError):
        bare = b"".join(chunk for kind, chunk in png_chunks(content, to=b"") if kind in _PIXEL_CHUNKS)
        if not content.startswith(_PNG_MAGIC) or len(bare) + len(_PNG_MAGIC) == len(content):
            raise
        found = _by_pillow(path, _PNG_MAGIC + bare)
        return replace(found, notes=(*found.notes, "what it says beside its pixels is damaged, and left out"))


_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")


def _by_pillow(path: Path, content: bytes, page: TiffPage | None = None, number: int = 0) -> ImageFile:
    """page: of a TIFF, its number there; None: a file of another format, which has one image or is refused."""
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        if page:
            image.seek(number)
        else:
            _check_pixels(path, image.width, image.height)
        is_phones = image.format == "MPO"
        if not page and not is_phones and _has_frames(image):
            raise ImageError(f"{path}: has several frames; {_SPLIT}")
        form = "JPEG" if is_phones else str(image.format)
        deep = _deep(path, content, form)
        if deep is None:
            image.load()
        jpeg = image if isinstance(image, JpegImagePlugin.JpegImageFile) else None
        dots = image.info.get("dpi")
        return _upright(
            np.asarray(_plain(path, image)) if deep is None else deep,
            image.getexif,
            format=form,
            profile=image.info.get("icc_profile"),
            resolution=(float(dots[0]), float(dots[1]), 2) if dots and not page and min(dots) > 0 else None,
            colour_chunks=b"".join(chunk for kind, chunk in png_chunks(content) if kind in _COLOUR_CHUNKS)
            if form == "PNG"
            else b"",
            quantisation=jpeg.quantization if jpeg else None,
            subsampling=max(0, JpegImagePlugin.get_sampling(jpeg)) if jpeg else 0,
            compression=int(page.compression) if page else 1,
            notes=(_SECOND_PICTURE,) if is_phones else (),
        )


def _has_frames(image: Image.Image) -> bool:
    """Without counting them."""
    try:
        image.seek(1)
    except EOFError:
        return False
    image.seek(0)
    return True


def _plain(path: Path, image: Image.Image) -> Image.Image:
    """As L, LA, RGB or RGBA; F of a PFM."""
    clear = "transparency" in image.info
    if image.mode in ("LA", "RGBA", "F") or (image.mode in ("L", "RGB") and not clear):
        return image
    if image.mode in ("1", "L"):
        return image.convert("LA" if clear else "L")
    if image.mode in ("RGB", "P", "CMYK", "YCbCr", "RGBX"):
        return image.convert("RGBA" if clear else "RGB")
    if image.mode in ("La", "RGBa", "PA"):
        return image.convert("LA" if image.mode == "La" else "RGBA")
    raise ImageError(f"{path}: {image.mode} pixels; {_CONVERT}")


def _deep(path: Path, content: bytes, form: str) -> np.ndarray | None:
    """Pixels of 16 bits, which Pillow would cut to 8 where they have several channels. None: they have 8 bits."""
    if form == "PNG" and content[_PNG_DEPTH] == 16:
        return np.asarray(imagecodecs.png_decode(content))
    if form == "PPM" and (header := _DEEP_PPM.match(content)) and int(header["white"]) > 255:
        if header["kind"] in b"P2 P3":
            raise ImageError(f"{path}: {form} of numbers above 255 in letters; {_CONVERT}")
        shape = (int(header["height"]), int(header["width"]), 3 if header["kind"] == b"P6" else 1)
        words = np.frombuffer(content, ">u2", math.prod(shape), header.end()).reshape(shape)
        return np.rint(words * (65535 / int(header["white"]))).astype(np.uint16)
    if form in _PERHAPS_DEEP and (depth := _PERHAPS_DEEP[form](content).dtype) != np.uint8:
        raise ImageError(f"{path}: {form} of {depth}; {_CONVERT}")
    return None


_PNG_DEPTH = 24  # where it stands
_GAP = rb"(?:\s|#[^\n]*\n)+"
_DEEP_PPM = re.compile(
    rb"(?P<kind>P[2356])" + _GAP + rb"(?P<width>\d+)" + _GAP + rb"(?P<height>\d+)" + _GAP + rb"(?P<white>\d+)\s"
)
_PERHAPS_DEEP: dict[str, Callable[[bytes], Any]] = {
    "JPEG2000": imagecodecs.jpeg2k_decode,
    "AVIF": imagecodecs.avif_decode,
}


# --- TIFF -----------------------------------------------------------------------------------------------------------


def _tiff_pages(tiff: TiffFile) -> Iterator[tuple[int, TiffPage]]:
    """Without thumbnails and the levels of a pyramid, and no further than they are asked for."""
    for number in itertools.count():
        try:
            page = tiff.pages[number]
        except IndexError:
            return
        assert isinstance(page, TiffPage)
        if not (page.is_reduced or page.is_mask):
            yield number, page


def _tiff_page(path: Path, content: bytes, number: int, page: TiffPage) -> ImageFile:
    """Grey and RGB by tifffile, which leaves no sample out; what is to become either (palettes, CMYK) by Pillow."""
    _check_pixels(path, page.imagewidth, page.imagelength)
    becomes_one = page.bitspersample < 8 or (page.bitspersample == 8 and page.photometric not in _COLOURS)
    if page.sampleformat == SAMPLEFORMAT.UINT and becomes_one:
        return _by_pillow(path, content, page, number)

    def exif() -> Image.Exif:
        found = Image.Exif()
        found.endian, found.bigtiff = page.parent.byteorder, page.parent.is_bigtiff
        found.load_from_fp(io.BytesIO(content), page.offset)
        return found

    pixels = _by_tifffile(path, page)
    return _upright(pixels, exif, format="TIFF", profile=page.iccprofile, compression=int(page.compression))


# Samples of a pixel, without alpha.
_COLOURS: dict[int, int] = {PHOTOMETRIC.MINISWHITE: 1, PHOTOMETRIC.MINISBLACK: 1, PHOTOMETRIC.RGB: 3}


def _by_tifffile(path: Path, page: TiffPage) -> np.ndarray:
    """(H, W) or (H, W, samples)."""
    is_negative = page.photometric == PHOTOMETRIC.MINISWHITE
    is_ours = str(page.dtype) in _WHITE and page.bitspersample in (8, 16, 32) and page.imagedepth == 1
    more = page.samplesperpixel - _COLOURS.get(page.photometric, 0)
    if not is_ours or page.photometric not in _COLOURS or more not in ((0,) if is_negative else (0, 1)):
        kind = f"{page.samplesperpixel} x {page.dtype} of {page.bitspersample} bits a pixel"
        raise ImageError(f"{path}: {kind} ({getattr(page.photometric, 'name', page.photometric)}); {_CONVERT}")
    pixels = np.asarray(page.asarray())
    if page.axes == "SYX":
        pixels = np.moveaxis(pixels, 0, -1)
    white = _WHITE[str(page.dtype)]
    if page.extrasamples and page.extrasamples[0] == EXTRASAMPLE.ASSOCALPHA:
        pixels = _apart(pixels, white)
    return np.asarray(white - pixels if is_negative else pixels, page.dtype)


def _apart(pixels: np.ndarray, white: int) -> np.ndarray:
    """Colours that alpha was multiplied into, as they are without it."""
    alpha = pixels[..., -1:]
    colours = pixels[..., :-1] / np.where(alpha == 0, white, alpha) * white
    if pixels.dtype != np.float32:
        colours = np.rint(np.clip(colours, 0, white))
    return np.concatenate([colours.astype(pixels.dtype), alpha], axis=2)


# --- what all of them go through ------------------------------------------------------------------------------------


def _upright(pixels: np.ndarray, read_exif: Callable[[], Image.Exif], **told: Any) -> ImageFile:
    """Turned as the file says, colours and alpha apart. pixels: (H, W) or (H, W, 1 to 4)."""
    planes = np.atleast_3d(pixels)
    orientation, resolution, kept = 1, told.pop("resolution", None), None
    try:
        with warnings.catch_warnings(action="ignore"):
            exif = read_exif()
            orientation = exif.get(_ORIENTATION, 1)
            resolution = resolution or _resolution(exif)
            kept = _kept_exif(exif, planes.shape[:2][:: -1 if orientation in _ON_ITS_SIDE else 1])
    except Exception:  # of damaged EXIF anything comes: the image is whole
        told["notes"] = (*told.get("notes", ()), "damaged EXIF is left out")
    if resolution and orientation in _ON_ITS_SIDE:
        resolution = (resolution[1], resolution[0], resolution[2])
    channels = 3 if planes.shape[2] >= 3 else 1
    if told.get("profile") and told["profile"][16:20] != {1: b"GRAY", 3: b"RGB "}[channels]:
        told["profile"] = None  # of CMYK, or of a palette of grey: wrong for what the pixels have become
    turned = _TURNED[orientation](planes) if orientation in _TURNED else planes
    colours, alpha = turned[..., :channels], turned[..., channels:]
    return ImageFile(
        pixels=np.ascontiguousarray(colours if channels == 3 else colours[..., 0]),
        alpha=np.ascontiguousarray(alpha[..., 0]) if alpha.shape[2] else None,
        resolution=resolution,
        exif=kept,
        **told,
    )


# By what EXIF calls orientation: how the image is shown.
_TURNED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda image: np.rot90(image, 2),
    4: np.flipud,
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: np.rot90(image, 2).swapaxes(0, 1),
    8: np.rot90,
}
_ON_ITS_SIDE = (5, 6, 7, 8)


def _resolution(exif: Image.Exif) -> tuple[float, float, int] | None:
    if _X_RESOLUTION not in exif or _Y_RESOLUTION not in exif:
        return None
    across, down = float(exif[_X_RESOLUTION]), float(exif[_Y_RESOLUTION])
    is_one = math.isfinite(across) and math.isfinite(down) and across > 0 and down > 0
    return (across, down, int(exif.get(_RESOLUTION_UNIT, 2))) if is_one else None


def _kept_exif(exif: Image.Exif, size: tuple[int, ...]) -> bytes | None:
    """What describes the picture: not how its pixels lay in the file, and no thumbnail, which shows the noisy image."""
    made = Image.Exif()
    _take_texts(exif, made)
    for part in (_EXIF, _GPS):
        if values := dict(exif.get_ifd(part)):
            values.pop(_INTEROP, None)
            values.update({tag: side for tag, side in ((_WIDTH, size[1]), (_HEIGHT, size[0])) if tag in values})
            made.get_ifd(part).update(values)
    if not made and not made.get_ifd(_EXIF) and not made.get_ifd(_GPS):
        return None
    made[_ORIENTATION] = 1
    return made.tobytes()


def _take_texts(exif: Image.Exif, made: Image.Exif) -> None:
    """As bytes: Pillow writes ASCII alone, and others write UTF-8."""
    for tag in _TEXTS:
        if isinstance(text := exif.get(tag), str):
            made[tag] = text.encode("latin-1", "replace")


def _loaded(written: bytes | None) -> Image.Exif:
    exif = Image.Exif()
    exif.load(written or b"")
    _take_texts(exif, exif)
    return exif


def png_chunks(content: bytes, to: bytes = b"IDAT") -> Iterator[tuple[bytes, bytes]]:
    """Kind and the whole chunk, of each before the first of the kind `to`."""
    at = 8
    while at + 12 <= len(content) and (kind := content[at + 4 : at + 8]) != to:
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        yield kind, content[at:end]
        at = end


# --- out ------------------------------------------------------------------------------------------------------------

_WRITTEN = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "PPM")  # without loss, but for JPEG
_SIDES = {"JPEG": 65_500, "WEBP": 16_383}  # pixels at most, of libjpeg and libwebp
_JPEG_QUALITY = 95  # where neither the input nor the user names one
_JPEG_EXIF = 65_527  # bytes at most
_IN_WORDS = {"uint8": "8 bits", "uint16": "16 bits", "float32": "floats"}
# What TIFF has a number for, of what loses nothing and that tifffile writes; the others become deflate.
_COMPRESSIONS = {1: None, 5: "lzw", 8: "zlib", 32773: "packbits", 50000: "zstd"}


def output_format(image: ImageFile) -> str:
    """The image's own, where it can be written without loss or is JPEG; else PNG, or TIFF for floats."""
    if image.format in _WRITTEN and not format_problem(image, image.format):
        return image.format
    return "TIFF" if image.pixels.dtype == np.float32 else "PNG"


def format_problem(image: ImageFile, form: str) -> str:
    """Why an image cannot be of a format; empty: it can."""
    depth = str(image.pixels.dtype)
    if depth not in _DEPTHS.get(form, ("uint8",)) or (form == "PPM" and depth == "float32" and image.channels == 3):
        able = [other for other in _WRITTEN if depth in _DEPTHS.get(other, ("uint8",))]
        return f"{form} has no {_IN_WORDS[depth]} a channel, as the image has; {' and '.join(able)} have"
    if image.alpha is not None and form in ("JPEG", "BMP", "PPM"):
        return f"{form} has no transparency, as the image has; PNG, TIFF and WEBP have"
    if form == "WEBP" and image.channels == 1 and image.profile:
        return f"{form} has colours alone, and the image a profile of grey; PNG, TIFF and JPEG have grey"
    if max(image.pixels.shape[:2]) > _SIDES.get(form, math.inf):
        return f"{form} has sides of at most {_SIDES[form]} pixels; PNG and TIFF have longer ones"
    if form == "JPEG" and image.exif and len(image.exif) > _JPEG_EXIF:
        return f"its EXIF is longer than {form} takes; leave it out with --strip-metadata"
    return ""


def write_image(image: ImageFile, path: Path, form: str, *, quality: int | None = None) -> None:
    """Of any format that is not `no_format`.

    JPEG has the quantisation and subsampling that the image came with, and without any quality 95 and 4:4:4; all else
    loses nothing. quality: 1 to 100, of JPEG, and of a WebP that may lose. Raises OSError.
    """
    if form == "TIFF":
        write_tiff([image], path)
    elif form == "PNG":
        path.write_bytes(_as_png(image))
    elif form == "PPM" and image.pixels.dtype == np.uint16:
        height, width = image.pixels.shape[:2]
        head = f"P{5 if image.channels == 1 else 6}\n{width} {height}\n65535\n"
        path.write_bytes(head.encode() + image.pixels.astype(">u2").tobytes())
    else:
        Image.fromarray(_joined(image)).save(path, form, **_options(image, form, quality))


def write_tiff(pages: Iterable[ImageFile], path: Path) -> None:
    """One page for each image, at its depth; EXIF is the first one's. Raises OSError."""
    first: Image.Exif | None = None
    with TiffWriter(path, byteorder="<") as file:
        for page in pages:
            exif = _loaded(page.exif)
            first = exif if first is None else first
            texts = {tag: exif[tag] for tag in _TEXTS if tag in exif}
            compression = _COMPRESSIONS.get(page.compression, "zlib")
            file.write(
                _joined(page),
                photometric="minisblack" if page.channels == 1 else "rgb",
                planarconfig="contig" if page.channels == 3 or page.alpha is not None else None,
                extrasamples=None if page.alpha is None else ["unassalpha"],
                compression=compression,
                predictor=compression in ("lzw", "zlib", "zstd") and page.pixels.dtype != np.float32,
                iccprofile=page.profile,
                resolution=page.resolution and page.resolution[:2],
                resolutionunit=page.resolution and page.resolution[2],
                description=texts.pop(_DESCRIPTION, None),
                software=texts.pop(_SOFTWARE, False),
                extratags=[(tag, "s", 0, text, True) for tag, text in texts.items()],
                metadata=None,
            )
    if first is not None and (first.get_ifd(_EXIF) or first.get_ifd(_GPS)):
        _add_exif(path, first)


def _add_exif(path: Path, exif: Image.Exif) -> None:
    """Tifffile writes no directories of EXIF and GPS: they go to the end, with a first one that names them."""
    with path.open("r+b") as file:
        file.seek(4)
        (begin,) = struct.unpack("<I", file.read(4))
        file.seek(begin)
        (count,) = struct.unpack("<H", file.read(2))
        entries = [file.read(12) for _ in range(count)]
        following = file.read(4)
        for part in (_EXIF, _GPS):
            directory = TiffImagePlugin.ImageFileDirectory_v2(group=part)
            directory.update(exif.get_ifd(part))
            if directory:
                at = _even_end(file)
                file.write(directory.tobytes(at))
                entries.append(struct.pack("<HHII", part, 4, 1, at))
        at = _even_end(file)
        entries.sort(key=lambda entry: int.from_bytes(entry[:2], "little"))
        file.write(struct.pack("<H", len(entries)) + b"".join(entries) + following)
        file.seek(4)
        file.write(struct.pack("<I", at))


def _even_end(file: BinaryIO) -> int:
    """Where a TIFF's next directory begins."""
    end = file.seek(0, io.SEEK_END)
    return end + file.write(b"\0" * (end % 2))


def _joined(image: ImageFile) -> np.ndarray:
    """(H, W), or (H, W, channels) with alpha behind the colours."""
    joined = image.pixels if image.alpha is None else np.dstack([image.pixels, image.alpha])
    return np.array(joined, order="C")  # a copy: imagecodecs wants the strides of an array of that shape


def _as_png(image: ImageFile) -> bytes:
    """Its pixels are imagecodecs', of any depth; what else it says is Pillow's, around one pixel."""
    about = io.BytesIO()
    Image.new("L", (1, 1)).save(about, "PNG", **_options(image, "PNG", None))
    said = b"".join(chunk for kind, chunk in png_chunks(about.getvalue()) if kind != b"IHDR")
    made = bytes(imagecodecs.png_encode(_joined(image)))
    return made[:_PNG_HEADER] + image.colour_chunks + said + made[_PNG_HEADER:]


_PNG_HEADER = 33  # bytes of the signature and of IHDR


def _options(image: ImageFile, form: str, quality: int | None) -> dict[str, Any]:
    """What Pillow takes, of what a format has."""
    options: dict[str, Any] = {}
    if form in ("PNG", "JPEG", "WEBP"):
        options |= {"icc_profile": image.profile} if image.profile else {}
        options |= {"exif": image.exif} if image.exif else {}
    if form in ("PNG", "JPEG", "BMP") and image.resolution and image.resolution[2] != 1:
        inches = 2.54 if image.resolution[2] == 3 else 1
        options["dpi"] = (image.resolution[0] * inches, image.resolution[1] * inches)
    if form == "WEBP" and image.resolution:  # which has no other place for it
        exif = _loaded(image.exif)
        exif[_X_RESOLUTION], exif[_Y_RESOLUTION], exif[_RESOLUTION_UNIT] = image.resolution
        options["exif"] = exif.tobytes()
    if form == "WEBP":
        options |= {"lossless": True, "exact": True} if quality is None else {"quality": quality}
    if form == "JPEG":
        as_it_came = image.quantisation and quality is None  # Pillow would scale the tables by a quality
        options |= {"qtables": image.quantisation} if as_it_came else {"quality": quality or _JPEG_QUALITY}
        options["subsampling"] = image.subsampling
    return options
