"""Your own images: a folder or an s3:// prefix of pictures, or of noisy/clean pairs -> arrays, checked and split.

FOLDER/*.png                                split by content: a tenth each for validation and test
FOLDER/train and test, validation or both   your own split; one that is missing is a tenth of train
noisy/NAME and clean/NAME in any of these   pairs: real noise, none is added
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..config import ValueRange
from .folder_files import FolderFiles, list_files
from .folder_layout import CLEAN, NOISY, Layout, describe_skipped, list_some, parse_layout
from .image_formats import DataError, ImageError
from .image_reading import read_image
from .memory_mapped import PixelFiles, system_memory
from .pictures import Picture, complete_splits, describe_splits
from .pixel_checks import PixelChecker, mixed_kinds
from .pixel_format import PixelFormat

FASHION_MNIST = "fashion-mnist"
CROPS = (16, 32, 64, 128, 256)
_SHOWN = 5  # errors in a message


@dataclass(frozen=True, kw_only=True, slots=True)
class Pictures:
    """All pictures of a folder, checked and split."""

    splits: dict[str, list[Picture]]  # train, validation, test
    pixel_format: PixelFormat
    has_noise: bool  # of pairs: whether any differ
    messages: tuple[str, ...]  # for people: how many there are, how they were split, what was left out


def read_pictures(
    where: str, crop: int, store: PixelFiles | None = None, value_range: ValueRange | None = None
) -> Pictures:
    """Read all pictures of a folder or of s3://BUCKET/PREFIX, without alpha.

    Each must have at least crop x crop pixels; all must be grey, or all RGB, and have one pixel format.

    Args:
        store: receives pixels that do not fit in memory.
        value_range: black and white of 16-bit and float32 images; None: the pixel type's own.

    Raises:
        DataError: the images cannot be used; the message has all problems.
        MachineError: an S3 server does not answer.
    """
    files = list_files(where)
    errors: list[str] = []
    layout = parse_layout(files.images.keys(), errors)
    checker = PixelChecker(value_range)
    loaded = _stream(_load_all(files, layout, crop, checker, errors), store)
    errors += mixed_kinds((picture.name, picture.kind) for _, picture in loaded)
    errors += checker.problems()
    without_noise = [picture.name for _, picture in loaded if not picture.has_noise]
    _raise_errors(where, errors)

    pictures: dict[str, list[Picture]] = defaultdict(list)
    for split, picture in loaded:
        pictures[split].append(picture)
    splits, num_duplicates = complete_splits(pictures, where)
    messages = [describe_splits(splits, checker.pixel_format, layout), *describe_skipped(files.skipped)]
    if num_duplicates:
        messages.append(f"copies of other images, which count once: {num_duplicates}")
    if without_noise:
        messages.append(f"noisy and clean are the same, pixel by pixel: {list_some(without_noise)}")
    return Pictures(
        splits=splits,
        pixel_format=checker.pixel_format,
        has_noise=len(without_noise) < len(loaded),
        messages=(*messages, *checker.warnings()),
    )


def check_layout(where: str) -> None:
    """Check a folder by its file names only. Raises DataError."""
    errors: list[str] = []
    if os.path.isdir(where) and where != FASHION_MNIST:
        parse_layout(list_files(where).images.keys(), errors)
    _raise_errors(where, errors)


def _raise_errors(where: str, errors: Sequence[str]) -> None:
    if errors:
        rest = [f"... and {len(errors) - _SHOWN} more"] if len(errors) > _SHOWN else []
        raise DataError("\n".join([f"data={where}: its images cannot be used:", *errors[:_SHOWN], *rest]))


def _load_all(
    files: FolderFiles, layout: Layout, crop: int, checker: PixelChecker, errors: list[str]
) -> Iterator[tuple[str, Picture]]:
    """Yield split and picture, and collect the errors of what cannot be used."""
    for (split, name), paths in sorted(layout.groups.items()):
        try:
            yield split, _load(name, paths, files, crop, checker)
        except ImageError as error:
            errors.append(str(error))


def _stream(pictures: Iterable[tuple[str, Picture]], store: PixelFiles | None) -> list[tuple[str, Picture]]:
    """Collect pictures; whenever their pixels exceed the memory that the store allows, they move to its files."""
    in_files: list[tuple[str, Picture]] = []
    in_memory: list[tuple[str, Picture]] = []
    size = 0  # bytes in memory
    for split, picture in pictures:
        in_memory.append((split, picture))
        size += picture.nbytes
        if store is not None and size > store.in_memory:
            in_files += _move_to_files(in_memory, store)
            in_memory, size = [], 0
    if store is not None and in_files and in_memory:
        in_memory = _move_to_files(in_memory, store)
    return in_files + in_memory


def _load(name: str, paths: Mapping[str, str], files: FolderFiles, crop: int, checker: PixelChecker) -> Picture:
    """Read one picture, or a pair. Raises ImageError."""
    pixels = {kind: checker.clip_to_range(_read_pixels(files, path), path) for kind, path in paths.items()}
    clean, noisy = pixels[CLEAN], pixels.get(NOISY)
    if noisy is not None and noisy.shape != clean.shape:
        raise ImageError(f"{paths[NOISY]}: has {_size(noisy)}, and {paths[CLEAN]} {_size(clean)}")
    if min(clean.shape[1:]) < crop:
        raise ImageError(f"{paths[CLEAN]}: has {_size(clean)}, below the crop of {crop}x{crop}")
    return Picture(name, clean, noisy)


def _read_pixels(files: FolderFiles, path: str) -> np.ndarray:
    """(C, H, W), grey or RGB. Raises ImageError, and DataError where the memory is full."""
    try:
        pixels = read_image(Path(path), files.images[path]()).pixels
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error})") from error
    if 4 * pixels.nbytes > system_memory("MemAvailable"):  # they are copied for the trials to share
        raise DataError(f"{path}: with it the images fill this machine's memory; take fewer, or a larger machine")
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[2]}x{pixels.shape[1]} pixels"


def _move_to_files(pictures: Sequence[tuple[str, Picture]], store: PixelFiles) -> list[tuple[str, Picture]]:
    """Replace the pixels by mapped ones."""
    clean = store.put(CLEAN, [picture.clean for _, picture in pictures])
    noisy = [picture.noisy for _, picture in pictures if picture.noisy is not None]
    partners = [array for _, array in store.put(NOISY, noisy)] if noisy else [None] * len(pictures)
    return [
        (split, replace(picture, clean=array, noisy=partner, begin=begin))
        for (split, picture), (begin, array), partner in zip(pictures, clean, partners, strict=True)
    ]
