"""The pictures of a folder: split by their content, and cut into crops."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .folder_layout import SPLITS, Layout, list_some
from .image_formats import DataError
from .pixel_format import PixelFormat

MAX_CROPS = 5_000  # of the validation and of the test images
_TENTH = 10


@dataclass(frozen=True)
class Picture:
    """An image, and its noisy copy where the folder has pairs; (C, H, W), both of the set's pixel type."""

    name: str
    clean: np.ndarray
    noisy: np.ndarray | None = None
    begin: int | None = None  # of its pixels in a PixelFile, where they do not fit in memory

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the clean pixels; the same for two files, even of two formats, with the same picture."""
        return hashlib.sha256(repr(self.clean.shape).encode() + self.clean.tobytes()).hexdigest()

    @functools.cached_property
    def noisy_digest(self) -> str:
        """SHA-256 of the noisy pixels: one clean image may have several noisy copies."""
        return "" if self.noisy is None else hashlib.sha256(self.noisy.tobytes()).hexdigest()

    @property
    def kind(self) -> str:
        """grey or RGB."""
        return "RGB" if len(self.clean) > 1 else "grey"

    @property
    def nbytes(self) -> int:
        """Of all its pixels."""
        return self.clean.nbytes + (0 if self.noisy is None else self.noisy.nbytes)

    @property
    def has_noise(self) -> bool:
        """Whether the two images of a pair differ anywhere; true for a picture without a noisy copy."""
        return self.noisy is None or not np.array_equal(self.noisy, self.clean)


def complete_splits(pictures: Mapping[str, list[Picture]], where: str) -> tuple[dict[str, list[Picture]], int]:
    """Divide the pictures without a split, "", by content, so that file names don't matter.

    Returns:
        The pictures of train, validation and test; and how many duplicates were dropped from those that were divided.

    Raises:
        DataError: the images are too few, or one image is in two splits.
    """
    splits, num_duplicates = dict(pictures), 0
    if "" in splits:
        pool = splits.pop("")
        different = {(picture.digest, picture.noisy_digest): picture for picture in pool}
        splits["train"] = list(different.values())
        num_duplicates = len(pool) - len(splits["train"])
    for name in ("test", "validation"):
        if name not in splits:
            splits["train"], splits[name] = _split_off_a_tenth(splits["train"])
    for name in SPLITS:
        if not splits.get(name):
            count = len({picture.digest for several in pictures.values() for picture in several})
            raise DataError(f"data={where}: {count} different images are too few; 3 make training, validation and test")
    _check_disjoint(splits, where)
    return splits, num_duplicates


def _split_off_a_tenth(train: Sequence[Picture]) -> tuple[list[Picture], list[Picture]]:
    """Return the rest and a tenth of the pictures, at least one; all noisy copies of a clean one stay together."""
    by_content = sorted(train, key=lambda picture: hashlib.sha256(picture.digest.encode()).digest())
    taken = {picture.digest for picture in by_content[: max(1, len(by_content) // _TENTH)]}
    rest = [picture for picture in by_content if picture.digest not in taken]
    return rest, [picture for picture in by_content if picture.digest in taken]


def _check_disjoint(splits: Mapping[str, list[Picture]], where: str) -> None:
    seen: dict[str, str] = {}
    for split in SPLITS:
        for picture in splits[split]:
            other = seen.setdefault(picture.digest, f"{split}/{picture.name}")
            if not other.startswith(f"{split}/"):
                raise DataError(f"data={where}: {other} and {split}/{picture.name} are the same image")


def describe_splits(splits: Mapping[str, list[Picture]], pixel_format: PixelFormat, layout: Layout) -> str:
    """One line: how many images of what kind each split has, and how the splits were made."""
    example = splits["train"][0]
    counts = ", ".join(f"{len(splits[split]):,} {split}" for split in SPLITS)
    kind = example.kind + (" pairs, noisy and clean" if example.noisy is not None else "")
    missing = [split for split in ("validation", "test") if split not in layout.splits]
    if not missing:
        how = "as its folders say"
    elif layout.splits.keys() == {"train"} or not layout.splits:
        folders = f" from {list_some(layout.pooled)}" if layout.pooled else ""
        how = f"validation and test are a tenth each, chosen by content out of all{folders}"
    else:
        how = f"{' and '.join(missing)}: a tenth of {layout.splits['train']}/, chosen by content"
    return f"{counts} images: {kind}, {pixel_format}; {how}"


def crop_grid(pictures: Sequence[Picture], crop: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Cut pictures into crops that do not overlap: always the same ones, in random order, at most MAX_CROPS.

    Returns:
        Clean crops (N, C, crop, crop), and the same crops of the noisy copies, where there are any.
    """
    corners = [
        (picture, top, left)
        for picture in pictures
        for top in range(0, picture.clean.shape[1] - crop + 1, crop)
        for left in range(0, picture.clean.shape[2] - crop + 1, crop)
    ]
    order = np.random.Generator(np.random.Philox(key=0)).permutation(len(corners))[:MAX_CROPS]
    chosen = [corners[i] for i in order]

    def cut(pixels_of: Callable[[Picture], Any]) -> np.ndarray:
        return np.stack([pixels_of(picture)[:, top : top + crop, left : left + crop] for picture, top, left in chosen])

    return cut(lambda p: p.clean), cut(lambda p: p.noisy) if pictures[0].noisy is not None else None
