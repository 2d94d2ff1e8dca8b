"""Your own images: a folder or an s3:// prefix of pictures, or of noisy/clean pairs -> arrays, checked and split.

FOLDER/*.png                                split by content: a tenth each for validation and test
FOLDER/train and test, validation or both   your own split; one that is missing is a tenth of train
noisy/NAME and clean/NAME in any of these   pairs: real noise, none is added
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..common import s3
from ..common.errors import ConfigError, MachineError
from ..config import ValueRange
from .folder_layout import CLEAN, NOISY, SPLITS, Layout, describe_skipped, list_some, parse_layout
from .image_files import IMAGE_SUFFIXES, ImageError, check_size, read_file, read_image
from .memory_mapped import PixelFiles, system_memory
from .pixel_format import PixelFormat
from .pixel_format import format_range as range_told

MAX_CROPS = 5_000  # of validation and test images each
FASHION_MNIST = "fashion-mnist"
CROPS = (16, 32, 64, 128, 256)
_TENTH = 10
_SHOWN = 5  # names in a message
_S3_ATTEMPTS = 5  # a request of a server that hangs takes a minute in all


class DataError(ConfigError):
    """Images that are missing, damaged, or cannot be used; the message has every mistake that was found."""


@dataclass(frozen=True)
class Picture:
    """An image, (C, H, W) of a depth's type, and the same with its noise where the folder has both."""

    name: str
    clean: np.ndarray
    noisy: np.ndarray | None = None
    begin: int | None = None  # of its pixels in the file, where they are too many for memory

    @functools.cached_property
    def digest(self) -> str:
        """Of its pixels: the same picture in two files, of two formats even, has one."""
        return hashlib.sha256(repr(self.clean.shape).encode() + self.clean.tobytes()).hexdigest()

    @functools.cached_property
    def noisy_digest(self) -> str:
        """As digest: one clean image may have several noisy ones."""
        return "" if self.noisy is None else hashlib.sha256(self.noisy.tobytes()).hexdigest()

    @property
    def halves(self) -> tuple[np.ndarray, np.ndarray]:
        """Of a pair: noisy and clean."""
        assert self.noisy is not None
        return self.noisy, self.clean


@dataclass(frozen=True, kw_only=True, slots=True)
class Pictures:
    """All of a folder, checked and split."""

    splits: dict[str, list[Picture]]  # train, validation, test
    pixel_format: PixelFormat
    has_noise: bool  # of pairs: whether any differ
    messages: tuple[str, ...]  # how many there are, how they were split, what was left out: a line each, for people


def read_pictures(
    where: str, crop: int, store: PixelFiles | None = None, value_range: ValueRange | None = None
) -> Pictures:
    """All pictures, each with at least crop x crop pixels, all grey or all RGB, all of one depth. Alpha is dropped.

    Args:
        where: a folder, or s3://BUCKET/PREFIX.
        crop: pixels a side.
        store: for pixels that are too many for memory.
        value_range: black and white of 16-bit and float32 images; None: their depth's own.

    Raises:
        DataError: they cannot be used.
        MachineError: an s3:// server is away.
    """
    files = _files(where)
    mistakes: list[str] = []
    layout = parse_layout(files.images.keys(), mistakes)
    values = _Values(value_range)
    read: list[tuple[str, Picture]] = []
    mapped, size = 0, 0  # how many of them are, and the bytes of the others
    for (split, name), paths in sorted(layout.groups.items()):
        try:
            pixels = {kind: values.within(_pixels(files.images[path], path), path) for kind, path in paths.items()}
        except ImageError as error:
            mistakes.append(str(error))
            continue
        clean, noisy = pixels[CLEAN], pixels.get(NOISY)
        if noisy is not None and noisy.shape != clean.shape:
            mistakes.append(f"{paths[NOISY]}: has {_size(noisy)}, and {paths[CLEAN]} {_size(clean)}")
        elif min(clean.shape[1:]) < crop:
            mistakes.append(f"{paths[CLEAN]}: has {_size(clean)}, below the crop of {crop}x{crop}")
        else:
            read.append((split, Picture(name, clean, noisy)))
            size += sum(array.nbytes for array in pixels.values())
        if store is not None and size > store.in_memory:
            read[mapped:] = _mapped(read[mapped:], store)
            mapped, size = len(read), 0
    if store is not None and 0 < mapped < len(read):
        read[mapped:] = _mapped(read[mapped:], store)
    mistakes += _mixed([(picture.name, ("grey", "RGB")[len(picture.clean) > 1]) for _, picture in read])
    mistakes += values.mixed()
    same = [picture.name for _, picture in read if picture.noisy is not None and np.array_equal(*picture.halves)]
    _refuse(where, mistakes)
    pictures: dict[str, list[Picture]] = defaultdict(list)
    for split, picture in read:
        pictures[split].append(picture)
    splits, copies = _complete(pictures, where)
    depth = PixelFormat(values.dtype, value_range)
    told = [
        _told_splits(splits, depth, layout),
        *describe_skipped(files.skipped),
        *([f"copies of other images, which count once: {copies}"] if copies else []),
        *([f"noisy and clean are the same, pixel by pixel: {list_some(same)}"] if same else []),
        *values.told(),
    ]
    return Pictures(splits=splits, pixel_format=depth, messages=tuple(told), has_noise=len(same) < len(read))


def check_layout(where: str) -> None:
    """What a folder's names tell already; no image is read. Raises DataError."""
    mistakes: list[str] = []
    if os.path.isdir(where) and where != FASHION_MNIST:
        parse_layout(_files(where).images.keys(), mistakes)
    _refuse(where, mistakes)


def crop_grid(pictures: Sequence[Picture], crop: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Crops (N, C, crop, crop) that do not overlap, the same ones always, in random order; at most MAX_CROPS.

    And the same crops of the noisy ones, where there are any.
    """
    places = [
        (picture, top, left)
        for picture in pictures
        for top in range(0, picture.clean.shape[1] - crop + 1, crop)
        for left in range(0, picture.clean.shape[2] - crop + 1, crop)
    ]
    order = np.random.Generator(np.random.Philox(key=0)).permutation(len(places))[:MAX_CROPS]
    chosen = [places[i] for i in order]

    def cut(of: Callable[[Picture], Any]) -> np.ndarray:
        return np.stack([of(picture)[:, top : top + crop, left : left + crop] for picture, top, left in chosen])

    return cut(lambda p: p.clean), cut(lambda p: p.noisy) if pictures[0].noisy is not None else None


def _refuse(where: str, mistakes: Sequence[str]) -> None:
    if mistakes:
        shown = [*mistakes[:_SHOWN], *([f"... and {len(mistakes) - _SHOWN} more"] if len(mistakes) > _SHOWN else [])]
        raise DataError("\n".join([f"data={where}: its images cannot be used:", *shown]))


# --- what lies where ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Files:
    """Paths with `/` between their parts."""

    images: Mapping[str, Callable[[], bytes]]  # what reads each
    skipped: tuple[str, ...]


def _files(where: str) -> _Files:
    """Raises DataError, also where no image is among them."""
    files = _s3(where) if where.startswith("s3://") else _local(Path(where))
    if not files.images:
        none = f"data={where}: has no images ({', '.join(IMAGE_SUFFIXES)})"
        raise DataError("\n".join([none, *describe_skipped(files.skipped)]))
    return files


def _local(folder: Path) -> _Files:
    if not os.path.isdir(folder):
        raise DataError(
            f"data={folder}: is no folder, and no data set of that name is known; there is fashion-mnist. Where the "
            "folder has moved, --data says where to"
        )
    root, images, skipped, leaving = Path(os.path.realpath(folder)), {}, [], []
    closed: list[OSError] = []  # folders that cannot be read, which are no empty ones
    for parent, folders, names in os.walk(folder, onerror=closed.append):
        inside = Path(parent).relative_to(folder)
        passed = {name for name in folders if name.startswith(".") or os.path.islink(Path(parent) / name)}
        skipped += [f"{(inside / name).as_posix()}/" for name in sorted(passed)]
        for name in sorted([*names, *(name for name in passed if name[0] != ".")]):
            path, is_file = Path(parent) / name, name not in passed
            if is_file and not _is_image(name):
                skipped.append((inside / name).as_posix())
                continue
            if not Path(os.path.realpath(path)).is_relative_to(root):
                leaving.append(str(path))
            if is_file:
                images[(inside / name).as_posix()] = functools.partial(read_file, path)
        folders[:] = sorted(set(folders) - passed)
    if closed:
        raise DataError("\n".join(f"data={folder}: {error.filename}: {error.strerror}" for error in closed[:_SHOWN]))
    if leaving:
        raise DataError(f"data={folder}: links that leave the folder: {', '.join(leaving[:_SHOWN])}")
    return _Files(images, tuple(skipped))


def _s3(address: str) -> _Files:
    from pyarrow import fs  # noqa: PLC0415 - seconds that others need not pay

    with _asked(address):
        system, root = s3.connect(address, _S3_ATTEMPTS)
        listed = system.get_file_info(fs.FileSelector(root, recursive=True))

    def reader(path: str, size: int) -> Callable[[], bytes]:
        def read() -> bytes:
            check_size(path, size)
            with _asked(address), system.open_input_file(path) as file:
                content: bytes = file.read()
                return content

        return read

    found = {info.path[len(root) :].lstrip("/"): info for info in listed if info.is_file}
    images = {name: reader(info.path, info.size) for name, info in sorted(found.items()) if _is_image(name)}
    return _Files(images, tuple(sorted(found.keys() - images.keys())))


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES and not any(part.startswith(".") for part in name.split("/"))


@contextmanager
def _asked(address: str) -> Iterator[None]:
    """What the user can mend is a DataError; what only waiting mends ends everything, not an image: MachineError."""
    try:
        yield
    except ConfigError as error:
        raise DataError(f"data={error}") from None
    except (OSError, ValueError) as error:
        if s3.is_refusal(error):
            raise DataError(f"data={address}: is not there, or refused ({error})") from error
        raise MachineError(f"data={address}: cannot be read ({error}). The same command tries again") from error


def _complete(pictures: Mapping[str, list[Picture]], where: str) -> tuple[dict[str, list[Picture]], int]:
    """Every split: what the folder's owner did not divide is divided by content, so that names don't matter. And how
    many copies of others there were in what was divided."""
    splits, copies = dict(pictures), 0
    if "" in splits:
        pool = splits.pop("")
        different = {(picture.digest, picture.noisy_digest): picture for picture in pool}  # copies count once
        splits["train"] = list(different.values())
        copies = len(pool) - len(splits["train"])
    for name in ("test", "validation"):
        _take(splits, name)
    for name in SPLITS:
        if not splits.get(name):
            count = len({picture.digest for several in pictures.values() for picture in several})
            raise DataError(f"data={where}: {count} different images are too few; 3 make training, validation and test")
    seen: dict[str, str] = {}
    for split in SPLITS:
        for picture in splits[split]:
            other = seen.setdefault(picture.digest, f"{split}/{picture.name}")
            if not other.startswith(f"{split}/"):
                raise DataError(f"data={where}: {other} and {split}/{picture.name} are the same image")
    return splits, copies


def _take(splits: dict[str, list[Picture]], name: str) -> None:
    """A tenth of the training pictures, at least one, where there is no such split; all noisy ones of a clean one."""
    if name not in splits:
        by_content = sorted(splits["train"], key=lambda picture: hashlib.sha256(picture.digest.encode()).digest())
        taken = {picture.digest for picture in by_content[: max(1, len(by_content) // _TENTH)]}
        splits[name] = [picture for picture in by_content if picture.digest in taken]
        splits["train"] = [picture for picture in by_content if picture.digest not in taken]


# --- one image ------------------------------------------------------------------------------------------------------


def _pixels(read: Callable[[], bytes], path: str) -> np.ndarray:
    """(C, H, W), grey or RGB. Raises ImageError, and DataError where memory ends."""
    try:
        pixels = read_image(Path(path), read()).pixels
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error})") from error
    if 4 * pixels.nbytes > system_memory("MemAvailable"):  # they are copied for the trials to share
        raise DataError(f"{path}: with it the images fill this machine's memory; take fewer, or a larger machine")
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


class _Values:
    """What the images' numbers are, over all of them."""

    def __init__(self, asked: ValueRange | None) -> None:
        self._asked = asked
        self._dtypes: dict[str, list[str]] = defaultdict(list)  # to paths
        self._beyond: list[str] = []  # images that were clipped
        self._found = (math.inf, -math.inf)

    @property
    def dtype(self) -> str:
        """Where they are not mixed."""
        return next(iter(self._dtypes))

    def within(self, pixels: np.ndarray, path: str) -> np.ndarray:
        """An image, clipped to the range that was asked for. Raises ImageError where its values are none."""
        self._dtypes[str(pixels.dtype)].append(path)
        try:
            depth = PixelFormat(str(pixels.dtype), self._asked)
        except ConfigError as error:
            raise ImageError(f"{path}: {error}") from None
        if pixels.dtype == np.uint8:
            return pixels
        if strange := int(np.count_nonzero(~np.isfinite(pixels))):
            raise ImageError(f"{path}: {strange} values are NaN or infinite; put numbers there, such as a median's")
        found = float(pixels.min()), float(pixels.max())
        self._found = min(self._found[0], found[0]), max(self._found[1], found[1])
        if depth.low <= found[0] and found[1] <= depth.high:
            return pixels
        values = f"{path}: has values from {found[0]:.6g} to {found[1]:.6g}"
        if self._asked is None:
            raise ImageError(f"{values}; float32 is taken as 0 ... 1, and --range LOW HIGH tells what else is meant")
        clipped: np.ndarray = np.clip(pixels, depth.low, depth.high).astype(pixels.dtype)
        if clipped.min() == clipped.max() and found[0] < found[1]:
            raise ImageError(f"{values}, all of them beyond --range {range_told(self._asked)}")
        self._beyond.append(path)
        return clipped

    def mixed(self) -> list[str]:
        """What to tell where they are not all of one depth."""
        names = {dtype: PixelFormat.dtype_name(dtype) for dtype in self._dtypes}
        return _mixed([(path, names[dtype]) for dtype, paths in self._dtypes.items() for path in paths])

    def told(self) -> list[str]:
        """Of the range, beside what the images have."""
        lines = []
        depth = PixelFormat(self.dtype, self._asked)
        if self._beyond:
            up_to = f"{self._found[0]:.6g} ... {self._found[1]:.6g}"
            lines.append(f"values beyond the range are clipped to it (all are {up_to}): {list_some(self._beyond)}")
        if self.dtype != "uint8" and self._found[1] - depth.low < (depth.high - depth.low) / _DARK:
            lines.append(
                f"all values are {self._found[0]:.6g} ... {self._found[1]:.6g}, a small part of the range, by which "
                "noise is measured; --range LOW HIGH says what is black and white"
            )
        return lines


_DARK = 4  # times that white is above the brightest pixel: 14 bits in 16, or fewer


def _mapped(read: Sequence[tuple[str, Picture]], store: PixelFiles) -> list[tuple[str, Picture]]:
    """The same, their pixels no longer in memory."""
    clean = store.put(CLEAN, [picture.clean for _, picture in read])
    noisy = [picture.noisy for _, picture in read if picture.noisy is not None]
    partners = [array for _, array in store.put(NOISY, noisy)] if noisy else [None] * len(read)
    return [
        (split, replace(picture, clean=array, noisy=partner, begin=begin))
        for (split, picture), (begin, array), partner in zip(read, clean, partners, strict=True)
    ]


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[2]}x{pixels.shape[1]} pixels"


def _mixed(kinds: Sequence[tuple[str, str]]) -> list[str]:
    """What to tell of images, by name and kind, that are not all of one kind; those of the rarest by name."""
    by_kind: dict[str, list[str]] = defaultdict(list)
    for name, kind in kinds:
        by_kind[kind].append(name)
    if len(by_kind) < 2:
        return []
    counts = [(len(by_kind[kind]), kind) for kind in sorted(by_kind, key=str.casefold)]
    told = " and ".join([f"{counts[0][0]} images are {counts[0][1]}", *(f"{n} {kind}" for n, kind in counts[1:])])
    rarest = min(by_kind, key=lambda kind: len(by_kind[kind]))
    return [f"{told}; all must be of one kind. {rarest}: {list_some(by_kind[rarest])}"]


# --- what is told of all of them ------------------------------------------------------------------------------------


def _told_splits(splits: Mapping[str, list[Picture]], depth: PixelFormat, layout: Layout) -> str:
    some = splits["train"][0]
    counts = ", ".join(f"{len(splits[split]):,} {split}" for split in SPLITS)
    kind = ("grey", "RGB")[len(some.clean) > 1] + (" pairs, noisy and clean" if some.noisy is not None else "")
    taken = [split for split in ("validation", "test") if split not in layout.splits]
    if not taken:
        how = "as its folders say"
    elif layout.splits.keys() == {"train"} or not layout.splits:
        of = f" from {list_some(layout.pooled)}" if layout.pooled else ""
        how = f"validation and test are a tenth each, chosen by content out of all{of}"
    else:
        how = f"{' and '.join(taken)}: a tenth of {layout.splits['train']}/, chosen by content"
    return f"{counts} images: {kind}, {depth}; {how}"
