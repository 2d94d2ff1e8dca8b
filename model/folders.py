"""Your own images: a folder or an s3:// prefix of pictures, or of noisy/clean pairs -> arrays, checked and split.

FOLDER/*.png                                split by content: a tenth each for validation and test
FOLDER/train, FOLDER/test (, validation)    your own split
noisy/NAME and clean/NAME in any of these   pairs: real noise, none is added
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from model import s3
from model.config import ConfigError, MachineError
from model.image_files import IMAGE_SUFFIXES, ImageError, check_size, read_file, read_image
from model.stream import PixelFiles, memory

MAX_CROPS = 5_000  # of validation and test images each
FASHION_MNIST = "fashion-mnist"
SPLITS = ("train", "validation", "test")
CROPS = (16, 32, 64, 128, 256)
_TENTH = 10
NOISY, CLEAN = "noisy", "clean"
_SHOWN = 5  # names in a message
_S3_ATTEMPTS = 5  # a request of a server that hangs takes a minute in all


class DataError(ConfigError):
    """Images that are missing, damaged, or cannot be used; the message has every mistake that was found."""


@dataclass(frozen=True)
class Picture:
    """An image, (C, H, W) uint8, and the same without its noise where the folder has both."""

    name: str
    clean: np.ndarray
    noisy: np.ndarray | None = None
    begin: int | None = None  # of its pixels in the file, where they are too many for memory

    @functools.cached_property
    def digest(self) -> str:
        """Of its pixels: the same picture in two files, of two formats even, has one."""
        return hashlib.sha256(repr(self.clean.shape).encode() + self.clean.tobytes()).hexdigest()


def read_pictures(where: str, crop: int, store: PixelFiles | None = None) -> dict[str, list[Picture]]:
    """All pictures by split, each with at least crop x crop pixels, all grey or all RGB. Raises DataError, and
    MachineError where an s3:// server is away.

    Alpha is dropped. where: a folder, or s3://BUCKET/PREFIX. store: for pixels that are too many for memory.
    """
    files_of = _s3(where) if where.startswith("s3://") else _local(Path(where))
    mistakes: list[str] = []
    read: list[tuple[str, Picture]] = []
    mapped, size = 0, 0  # how many of them are, and the bytes of the others
    for (split, name), files in sorted(_grouped(files_of, where, mistakes).items()):
        try:
            pixels = {kind: _pixels(files_of[path], path) for kind, path in files.items()}
        except ImageError as error:
            mistakes.append(str(error))
            continue
        clean, noisy = pixels[CLEAN], pixels.get(NOISY)
        if noisy is not None and noisy.shape != clean.shape:
            mistakes.append(f"{files[NOISY]}: has {_size(noisy)}, and {files[CLEAN]} {_size(clean)}")
        elif min(clean.shape[1:]) < crop:
            mistakes.append(f"{files[CLEAN]}: has {_size(clean)}, below the crop of {crop}x{crop}")
        else:
            read.append((split, Picture(name, clean, noisy)))
            size += sum(array.nbytes for array in pixels.values())
        if store is not None and size > store.in_memory:
            read[mapped:] = _mapped(read[mapped:], store)
            mapped, size = len(read), 0
    if store is not None and 0 < mapped < len(read):
        read[mapped:] = _mapped(read[mapped:], store)
    mistakes += _mixed_channels([picture for _, picture in read])
    _refuse(where, mistakes)
    pictures: dict[str, list[Picture]] = defaultdict(list)
    for split, picture in read:
        pictures[split].append(picture)
    return _complete(pictures, where)


def check_layout(where: str) -> None:
    """What a folder's names tell already; no image is read. Raises DataError."""
    mistakes: list[str] = []
    if os.path.isdir(where) and where != FASHION_MNIST:
        _grouped(_local(Path(where)), where, mistakes)
    _refuse(where, mistakes)


def grid(pictures: Sequence[Picture], crop: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Crops (N, C, crop, crop) uint8 that do not overlap, the same ones always, in random order; at most MAX_CROPS.

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


_Files: TypeAlias = Mapping[str, Callable[[], bytes]]  # what reads each image file, by its path, `/` between its parts


def _local(folder: Path) -> _Files:
    if not os.path.isdir(folder):
        raise DataError(f"data={folder}: is no folder, and no data set of that name is known; there is fashion-mnist")
    root, files, leaving = Path(os.path.realpath(folder)), {}, []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(parent) / name
            if not _is_image(name):
                continue
            if not Path(os.path.realpath(path)).is_relative_to(root):
                leaving.append(str(path))
            files[path.relative_to(folder).as_posix()] = functools.partial(read_file, path)
    if leaving:
        raise DataError(f"data={folder}: links that leave the folder: {', '.join(leaving[:_SHOWN])}")
    return files


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
    return {name: reader(info.path, info.size) for name, info in sorted(found.items()) if _is_image(name)}


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


def _grouped(files_of: _Files, where: str, mistakes: list[str]) -> dict[tuple[str, str], dict[str, str]]:
    """Paths by (split or "", name without noisy/ and clean/), then by kind: clean, and noisy of pairs."""
    if not files_of:
        raise DataError(f"data={where}: has no images ({', '.join(IMAGE_SUFFIXES)})")
    tops = {path.split("/")[0] for path in files_of if "/" in path}
    has_splits, loose = {"train", "test"} <= tops, sorted(p for p in files_of if p.split("/")[0] not in SPLITS)
    if has_splits and loose:
        mistakes.append(f"{loose[0]}: beside train/ and test/; put each image into one of {', '.join(SPLITS)}")
    groups: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    has_pairs = any(part in (NOISY, CLEAN) for path in files_of for part in path.split("/")[:-1])
    for path in files_of:
        split, _, name = path.partition("/") if has_splits else ("", "", path)
        kind = CLEAN
        if has_pairs:
            kind, _, name = name.partition("/")
            if kind not in (NOISY, CLEAN):
                mistakes.append(f"{path}: is neither in noisy/ nor in clean/, as the other images are")
                continue
        groups[split, name][kind] = path
    for files in groups.values():
        if has_pairs and len(files) == 1:
            (kind, path), other = next(iter(files.items())), {NOISY: CLEAN, CLEAN: NOISY}
            mistakes.append(f"{path}: has no partner in {other[kind]}/")
    return {key: files for key, files in groups.items() if not has_pairs or len(files) == 2}


def _complete(pictures: Mapping[str, list[Picture]], where: str) -> dict[str, list[Picture]]:
    """Every split: what the folder's owner did not divide is divided by content, so that names don't matter."""
    splits = dict(pictures)
    if "" in splits:
        splits["train"] = list({picture.digest: picture for picture in splits.pop("")}.values())  # copies count once
        _take(splits, "test")
    _take(splits, "validation")
    for name in SPLITS:
        if not splits.get(name):
            count = sum(map(len, pictures.values()))
            raise DataError(f"data={where}: {count} different images are too few; 3 make training, validation and test")
    seen: dict[str, str] = {}
    for split in SPLITS:
        for picture in splits[split]:
            other = seen.setdefault(picture.digest, f"{split}/{picture.name}")
            if not other.startswith(f"{split}/"):
                raise DataError(f"data={where}: {other} and {split}/{picture.name} are the same image")
    return splits


def _take(splits: dict[str, list[Picture]], name: str) -> None:
    """A tenth of the training pictures, at least one, where there is no such split."""
    if name not in splits:
        by_content = sorted(splits["train"], key=lambda picture: hashlib.sha256(picture.digest.encode()).digest())
        count = max(1, len(by_content) // _TENTH)
        splits[name], splits["train"] = by_content[:count], by_content[count:]


# --- one image ------------------------------------------------------------------------------------------------------


def _pixels(read: Callable[[], bytes], path: str) -> np.ndarray:
    """(C, H, W) uint8, grey or RGB. Raises ImageError, and DataError where memory ends."""
    try:
        pixels = read_image(Path(path), read()).pixels
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error})") from error
    if pixels.dtype != np.uint8:
        raise ImageError(f"{path}: has {pixels.dtype} pixels; training takes 8 bits a channel")
    if 4 * pixels.nbytes > memory("MemAvailable"):  # they are copied for the trials to share
        raise DataError(f"{path}: with it the images fill this machine's memory; take fewer, or a larger machine")
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


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


def _mixed_channels(pictures: Iterable[Picture]) -> list[str]:
    by_channels: dict[int, list[str]] = defaultdict(list)
    for picture in pictures:
        by_channels[len(picture.clean)].append(picture.name)
    if len(by_channels) < 2:
        return []
    grey, rgb = by_channels[1], by_channels[3]
    fewer, kind = (grey, "grey") if len(grey) <= len(rgb) else (rgb, "RGB")
    names = ", ".join(fewer[:_SHOWN])
    return [f"{len(grey)} images are grey and {len(rgb)} RGB; all must be of one kind. {kind}: {names}"]
