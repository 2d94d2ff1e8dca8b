"""Reads the EXIF of images, and selects the tags that an output with other pixels keeps."""

from __future__ import annotations

import math

from PIL import Image
from PIL.ExifTags import IFD, Base

TEXTS = (
    Base.ImageDescription, Base.Make, Base.Model, Base.Software, Base.DateTime, Base.Artist, Base.Copyright,
)  # fmt: skip
DIRECTORIES = (IFD.Exif, IFD.GPSInfo)


def read_resolution(exif: Image.Exif) -> tuple[float, float, int] | None:
    """Pixels per unit across and down, and the unit (1 none, 2 an inch, 3 a centimetre)."""
    if Base.XResolution not in exif or Base.YResolution not in exif:
        return None
    across, down = float(exif[Base.XResolution]), float(exif[Base.YResolution])
    is_valid = math.isfinite(across) and math.isfinite(down) and across > 0 and down > 0
    return (across, down, int(exif.get(Base.ResolutionUnit, 2))) if is_valid else None


def keep_description(exif: Image.Exif, height: int, width: int) -> bytes | None:
    """Serialise the tags that describe the picture; height and width are pixels of the upright image.

    Left out are the layout of the pixels in the file, and the thumbnail, which would show the noisy image.
    """
    kept = Image.Exif()
    copy_texts(exif, kept)
    for directory in DIRECTORIES:
        if values := dict(exif.get_ifd(directory)):
            values.pop(IFD.Interop, None)
            sides = {Base.ExifImageWidth: width, Base.ExifImageHeight: height}
            values.update({tag: side for tag, side in sides.items() if tag in values})
            kept.get_ifd(directory).update(values)
    if not kept and not any(kept.get_ifd(directory) for directory in DIRECTORIES):
        return None
    kept[Base.Orientation] = 1
    return kept.tobytes()


def copy_texts(exif: Image.Exif, to: Image.Exif) -> None:
    """Copy the texts as bytes: Pillow writes ASCII only, and other programs write UTF-8."""
    for tag in TEXTS:
        if isinstance(text := exif.get(tag), str):
            to[tag] = text.encode("latin-1", "replace")


def load_exif(serialised: bytes | None) -> Image.Exif:
    """The inverse of keep_description."""
    exif = Image.Exif()
    exif.load(serialised or b"")
    copy_texts(exif, exif)
    return exif
