"""Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747), padded to 32x32; from this machine or downloaded."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import logging
import os
import urllib.error
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..common.files import DISK_FULL_ERRNOS, atomic_replace
from .image_formats import DataError

log = logging.getLogger(__name__)

PADDING = 2  # pixels of black on each side, 28x28 to 32x32, before the noise


@dataclass(frozen=True, slots=True)
class _IdxFile:
    name: str
    count: int
    sha256: str  # of the unpacked content: distributions repack it


_TRAIN_SHA256 = "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
_TEST_SHA256 = "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
_FILES = {
    "train": _IdxFile("train-images-idx3-ubyte.gz", 60_000, _TRAIN_SHA256),
    "test": _IdxFile("t10k-images-idx3-ubyte.gz", 10_000, _TEST_SHA256),
}
_UPSTREAM = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
_MAX_DOWNLOAD_BYTES = 40_000_000
_IDX_HEADER_BYTES, _SIDE = 16, 28


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "pix2pix-search" / "fashion-mnist"


def fashion_mnist(split: str) -> np.ndarray:
    """Load the images of `train` or `test`, uint8 (N, 1, 32, 32). Raises DataError."""
    file = _FILES[split]
    path = next((folder / file.name for folder in (_cache(), _DEBIAN) if (folder / file.name).is_file()), None)
    if path is None:
        path = _download(file)
    pixels = _unpack(path, path.read_bytes(), file)
    images = np.frombuffer(pixels, np.uint8, offset=_IDX_HEADER_BYTES).reshape(file.count, 1, _SIDE, _SIDE)
    edge = (PADDING, PADDING)
    return np.pad(images, ((0, 0), (0, 0), edge, edge))


def _unpack(where: object, packed: bytes, file: _IdxFile) -> bytes:
    size = _IDX_HEADER_BYTES + file.count * _SIDE**2
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as stream:
            content = stream.read(size + 1)  # 40 MB could unpack to 40 GB
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{where}: damaged ({error}). Delete it and run again.") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != file.sha256:
        raise DataError(
            f"{where}: damaged (SHA-256 {digest[:12]}..., not {file.sha256[:12]}...). Delete it, run again."
        )
    return content


class _OnlyHttps(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *given: Any) -> urllib.request.Request | None:
        """Follow a redirect, whose address is the last argument, only to https."""
        if not given[-1].startswith("https://"):
            raise urllib.error.URLError(f"it redirects to {given[-1]}, which is not https")
        return super().redirect_request(*given)


_HTTPS = urllib.request.build_opener(_OnlyHttps)


def _download(file: _IdxFile) -> Path:
    """Download into the cache; the file is written only after its checksum matched."""
    url = _UPSTREAM + file.name
    log.warning("Downloading %s", url)
    try:
        with _HTTPS.open(url, timeout=60) as response:
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
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in DISK_FULL_ERRNOS:
            raise
        raise DataError(f"{target.parent}: cannot be made ({error.strerror}); XDG_CACHE_HOME names another") from error
    with atomic_replace(target) as part:
        part.write_bytes(packed)
    return target


if __name__ == "__main__":  # `make data`: download the files, or explain how to get them
    for _split in _FILES:
        print(f"Fashion-MNIST {_split}: {len(fashion_mnist(_split)):,} images, checksum matches")
