"""Image sets as uint8 arrays: Fashion-MNIST, padded to 32x32, split; found on this machine or fetched."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import logging
import os
import urllib.request
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from model.config import ConfigError, nearest
from model.noise import Noise, parse_noise

log = logging.getLogger(__name__)

NUM_VALIDATION = 5_000  # the last of the training images; test images choose nothing
PADDING = 2  # pixels of black on each side, 28x28 to 32x32, before the noise
_SOURCES = ("fashion-mnist",)

# Where each split's noise starts: the same noisy images for every trial, report and export.
NOISE_SEEDS = {"train": 3, "validation": 1, "test": 2}


class DataError(ConfigError):
    """Images that are missing or damaged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which images, and how they are made noisy. Raises ConfigError."""

    data: str = "fashion-mnist"
    noise: str = "gaussian:30"  # or another of model.noise

    def __post_init__(self) -> None:
        mistakes = []
        if self.data not in _SOURCES:
            mistakes.append(f"data={self.data}: no such data set. {nearest(self.data, _SOURCES)}")
        try:
            parse_noise(self.noise)
        except ConfigError as error:
            mistakes.append(str(error))
        if mistakes:
            raise ConfigError("\n".join(mistakes))

    def load(self) -> Images:
        """The images that a search may look at. Raises DataError."""
        train = _fashion_mnist("train")
        return Images(train=train[:-NUM_VALIDATION], validation=train[-NUM_VALIDATION:])

    def load_test(self) -> np.ndarray:
        """The test images, for measuring what was chosen: (N, C, H, W) uint8. Raises DataError."""
        return _fashion_mnist("test")


@dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """Clean images, uint8 (N, C, H, W); height and width are equal."""

    train: np.ndarray
    validation: np.ndarray


def to_unit(images: np.ndarray) -> np.ndarray:
    """uint8 in [0, 255] to float32 in [-1, 1]."""
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1)


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceImages:
    """What trainings read, on their device; made once and shared by the trainings that run there one after another."""

    train: torch.Tensor  # uint8 (N, C, H, W): noise is drawn afresh for every image shown
    validation: torch.Tensor  # float32 (M, C, H, W) in [-1, 1]
    validation_noisy: torch.Tensor  # the same for every training
    noise: Noise

    @classmethod
    def place(cls, images: Images, noise: str, device: torch.device, *, num_validation: int) -> DeviceImages:
        """Without a copy of the training images on the CPU. noise: a spec such as gaussian:30."""
        model = parse_noise(noise)
        clean = to_unit(images.validation[:num_validation])
        noisy = model.fixed(clean, seed=NOISE_SEEDS["validation"])
        with warnings.catch_warnings():  # arrays out of Ray's object store are read-only; nothing here writes to them
            warnings.simplefilter("ignore", UserWarning)
            train, validation, validation_noisy = (torch.from_numpy(a).to(device) for a in (images.train, clean, noisy))
        return cls(train=train, validation=validation, validation_noisy=validation_noisy, noise=model)


# --- Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747) -------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _IdxFile:
    name: str
    count: int
    sha256: str  # of the unpacked content: distributions pack it anew


_FILES = {
    "train": _IdxFile(
        "train-images-idx3-ubyte.gz", 60_000, "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
    ),
    "test": _IdxFile(
        "t10k-images-idx3-ubyte.gz", 10_000, "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
    ),
}
_UPSTREAM = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
_MAX_DOWNLOAD_BYTES = 40_000_000
_IDX_HEADER_BYTES, _SIDE = 16, 28


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "pix2pix-search" / "fashion-mnist"


def _fashion_mnist(split: str) -> np.ndarray:
    file = _FILES[split]
    path = next((folder / file.name for folder in (_cache(), _DEBIAN) if (folder / file.name).is_file()), None)
    if path is None:
        path = _download(file)
    pixels = _unpack(path, path.read_bytes(), file)
    images = np.frombuffer(pixels, np.uint8, offset=_IDX_HEADER_BYTES).reshape(file.count, 1, _SIDE, _SIDE)
    edge = (PADDING, PADDING)
    return np.pad(images, ((0, 0), (0, 0), edge, edge))


def _unpack(where: object, packed: bytes, file: _IdxFile) -> bytes:
    try:
        content = gzip.decompress(packed)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{where}: damaged ({error}). Delete it and run again.") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != file.sha256:
        raise DataError(
            f"{where}: damaged (SHA-256 {digest[:12]}..., not {file.sha256[:12]}...). Delete it, run again."
        )
    return content


def _download(file: _IdxFile) -> Path:
    """Fetch from upstream into the cache; written only after its checksum matched."""
    url = _UPSTREAM + file.name
    log.warning("Fetching %s", url)
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            packed = response.read(_MAX_DOWNLOAD_BYTES + 1)
    except (OSError, http.client.HTTPException) as error:
        raise DataError(
            f"Fashion-MNIST is not on this machine and {url} cannot be reached ({error}). On Debian and Ubuntu: "
            f"apt-get install dataset-fashion-mnist. Elsewhere: put {file.name} into {_cache()}"
        ) from error
    if len(packed) > _MAX_DOWNLOAD_BYTES:
        raise DataError(f"{url}: larger than {_MAX_DOWNLOAD_BYTES} bytes: not the file it should be")
    _unpack(url, packed, file)
    target = _cache() / file.name
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{os.getpid()}")
    part.write_bytes(packed)
    part.replace(target)
    return target


if __name__ == "__main__":  # `make data`: have the files, or say how to get them
    for _split, _file in _FILES.items():
        print(f"Fashion-MNIST {_split}: {len(_fashion_mnist(_split)):,} images, checksum matches")
