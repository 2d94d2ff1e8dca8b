"""Image sets, split -> batches on the device: Fashion-MNIST, padded to 32x32, found here or fetched; your folders."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import http.client
import io
import logging
import os
import urllib.error
import urllib.request
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.config import ConfigError, nearest, wrong_fields
from model.depth import EIGHT_BITS, Depth, ValueRange, wrong_range
from model.depth import told as range_told
from model.disk import FULL, writing
from model.folders import CROPS, FASHION_MNIST, DataError, Picture, Pictures, grid, read_pictures
from model.layout import CLEAN, NOISY
from model.noise import Noise, parse_noise
from model.stream import PixelFile, PixelFiles

log = logging.getLogger(__name__)

NUM_VALIDATION = 5_000  # the last of the training images; test images choose nothing
_CROP = 64
_MEASURED = 10_000  # of the training images
PADDING = 2  # pixels of black on each side, 28x28 to 32x32, before the noise
REAL = "real"  # in place of a noise: it is in the files

# Where each split's noise starts: the same noisy images for every trial, report and export.
NOISE_SEEDS = {"train": 3, "validation": 1, "test": 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which images, and how they are made noisy. Raises ConfigError."""

    data: str = "fashion-mnist"  # or a folder, or s3://BUCKET/PREFIX: see model.folders
    noise: str = "gaussian:30"  # see model.noise; of noisy/clean pairs: real
    crop: int | None = None  # pixels a side that are trained on, of a folder's images; None: 64
    range: ValueRange | None = None  # black and white of 16-bit and float32 images; None: see model.depth

    def __post_init__(self) -> None:
        if isinstance(self.range, list):  # out of JSON
            object.__setattr__(self, "range", tuple(self.range))
        if wrong := wrong_fields(DataConfig, dataclasses.asdict(self)):
            raise ConfigError("\n".join(wrong))
        mistakes = []
        if not self.is_folder and self.data != FASHION_MNIST:
            mistakes.append(f"data={self.data}: neither a data set nor a folder. {nearest(self.data, [FASHION_MNIST])}")
        if self.crop is not None and not self.is_folder:
            mistakes.append(f"crop={self.crop}: is for a folder of images; those of {FASHION_MNIST} have 32x32 pixels")
        elif self.crop not in (None, *CROPS):
            mistakes.append(f"crop={self.crop}: must be one of {', '.join(map(str, CROPS))}, which the network halves")
        if self.range is not None and not self.is_folder:
            mistakes.append(f"range={range_told(self.range)}: is for a folder of 16-bit or float32 images")
        elif mistake := wrong_range(self.range):
            mistakes.append(mistake)
        if self.noise == REAL and not self.is_folder:
            mistakes.append(f"noise={REAL}: is for a folder of noisy/clean pairs")
        if self.noise != REAL:
            try:
                parse_noise(self.noise)
            except ConfigError as error:
                mistakes.append(str(error))
        if mistakes:
            raise ConfigError("\n".join(mistakes))

    @classmethod
    def from_dict(cls, values: Any) -> DataConfig:
        """Out of a manifest. Raises ConfigError."""
        if wrong := wrong_fields(cls, values):
            raise ConfigError("\n".join(wrong))
        return cls(**values)

    @property
    def is_folder(self) -> bool:
        """Not a data set that is known by its name."""
        return self.data != FASHION_MNIST and ("/" in self.data or os.path.isdir(self.data))

    def load(self, store: PixelFiles | None = None) -> Images:
        """The images that a search may look at. store: for more than memory has room for; while it is open, trainings
        can read. Raises DataError, MachineError."""
        if not self.is_folder:
            train = _fashion_mnist("train")
            _fashion_mnist("test")  # nobody looks at it yet, but if it is damaged, that is told now
            return Images(train=train[:-NUM_VALIDATION], validation=Pairs(train[-NUM_VALIDATION:]), padding=PADDING)
        found = self._pictures(store)
        crops = Ragged.of(found.splits["train"], self._side, store)
        return Images(train=crops, validation=self._grid(found, "validation"), told=found.told)

    @property
    def is_slides(self) -> bool:
        """Whether the slides' figures are of these images and this noise."""
        return (self.data, self.noise) == (FASHION_MNIST, "gaussian:30")

    def load_train(self, store: PixelFiles | None = None) -> Pairs:
        """A part of the training images, for measuring on them; as load."""
        if self.is_folder:
            return self._grid(self._pictures(store), "train")
        return Pairs(_fashion_mnist("train")[:_MEASURED])

    def load_test(self, store: PixelFiles | None = None) -> Pairs:
        """The test images, for measuring what was chosen; as load."""
        if self.is_folder:
            return self._grid(self._pictures(store), "test")
        return Pairs(_fashion_mnist("test"))

    @property
    def _side(self) -> int:
        return self.crop or _CROP

    def _grid(self, found: Pictures, split: str) -> Pairs:
        return Pairs(*grid(found.splits[split], self._side), found.depth)

    def _pictures(self, store: PixelFiles | None) -> Pictures:
        pictures = read_pictures(self.data, self._side, store, self.range)
        are_pairs = pictures.splits["train"][0].noisy is not None
        if are_pairs and self.noise != REAL:
            raise DataError(f"noise={self.noise}: {self.data} has pairs, whose noise is in the files: --noise {REAL}")
        if self.noise == REAL and not are_pairs:
            raise DataError(f"noise={REAL}: {self.data} has no noisy/ beside clean/; name a noise, such as gaussian:30")
        if not pictures.has_noise:
            raise DataError(
                f"data={self.data}: all noisy images are their clean ones, pixel by pixel: nothing to learn"
            )
        return pictures


@dataclass(frozen=True, slots=True)
class Pairs:
    """Images to measure on, (N, C, H, W), height and width equal; with noisy ones where the noise is real."""

    clean: np.ndarray
    noisy: np.ndarray | None = None
    depth: Depth = EIGHT_BITS

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, which: slice) -> Pairs:
        return Pairs(self.clean[which], None if self.noisy is None else self.noisy[which], self.depth)

    def noised(self, noise: str, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Noisy and clean, float32 (N, C, H, W) in [-1, 1]: the same for every trial, report and export."""
        clean = self.depth.to_unit(self.clean)
        if self.noisy is not None:
            return self.depth.to_unit(self.noisy), clean
        return parse_noise(noise).fixed(clean, seed=NOISE_SEEDS[split]), clean


@dataclass(frozen=True, kw_only=True, slots=True)
class Ragged:
    """Images of any sizes as one flat array, which trials share without a copy; random crops are cut from it.

    An epoch shows as many crops as would tile the images; each image is cut as often as it has tiles.
    """

    pixels: (
        np.ndarray | PixelFile
    )  # of a depth's type: each image (C, H, W), one after another; a file has other splits', too
    noisy: np.ndarray | PixelFile | None  # as pixels
    tiles: np.ndarray  # int64 (M, 3), a row for each tile: where its image begins, and its height and width
    channels: int
    crop: int

    @classmethod
    def of(cls, pictures: Sequence[Picture], crop: int, store: PixelFiles | None = None) -> Ragged:
        """Raises nothing: read_pictures has checked them. store: where it put them, if they are too many for memory."""
        rows, end = [], 0
        for picture in pictures:
            _, height, width = picture.clean.shape
            begin = end if picture.begin is None else picture.begin
            rows += [(begin, height, width)] * ((height // crop) * (width // crop))
            end += picture.clean.size

        def joined(kind: str, arrays: list[np.ndarray]) -> np.ndarray | PixelFile:
            if store is not None and pictures[0].begin is not None:
                return store.file(kind)
            return np.concatenate([array.ravel() for array in arrays])

        noisy = [picture.noisy for picture in pictures if picture.noisy is not None]
        return cls(
            pixels=joined(CLEAN, [picture.clean for picture in pictures]),
            noisy=joined(NOISY, noisy) if noisy else None,
            tiles=np.array(rows, np.int64),
            channels=len(pictures[0].clean),
            crop=crop,
        )

    def in_order(self) -> Iterator[np.ndarray]:
        """All pixels, image by image, then the tiles as they are in memory: the same wherever the pixels lie."""
        begins, heights, widths = self.tiles.T
        first = np.flatnonzero(np.diff(begins, prepend=-1))
        sizes = (self.channels * heights * widths)[first]
        for pixels in (self.pixels, self.noisy):
            if pixels is not None:
                flat = pixels.open() if isinstance(pixels, PixelFile) else pixels
                yield from (flat[begin : begin + size] for begin, size in zip(begins[first], sizes, strict=True))
        canonical = np.repeat(np.cumsum(sizes) - sizes, np.diff(first, append=len(begins)))
        yield np.stack([canonical, heights, widths], axis=1)

    def __len__(self) -> int:
        return len(self.tiles)


@dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """What a search may look at. train: (N, C, H, W) of the validation images' size, or larger ones to crop."""

    train: np.ndarray | Ragged
    validation: Pairs
    padding: int = 0  # pixels of black around each image: a denoiser must know
    told: tuple[str, ...] = ()  # of a folder: how many images of what kind, and what was left out; lines for people

    @property
    def depth(self) -> Depth:
        """Of all of them."""
        return self.validation.depth

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what is trained on."""
        channels, height, width = self.validation.clean.shape[1:]
        return channels, height, width

    @property
    def digest(self) -> str:
        """Of all pixels, so that a search is not continued on other images."""
        digest = hashlib.sha256(repr(self.shape).encode())
        train = self.train.in_order() if isinstance(self.train, Ragged) else [self.train]
        for array in (*train, self.validation.clean, self.validation.noisy):
            digest.update(b"" if array is None else np.ascontiguousarray(array).data)
        return digest.hexdigest()


def to_unit(images: np.ndarray) -> np.ndarray:
    """uint8 in [0, 255] to float32 in [-1, 1]."""
    return EIGHT_BITS.to_unit(images)


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceImages:
    """What trainings read, on their device; made once and shared by the trainings that run there one after another."""

    train: torch.Tensor | DeviceRagged  # uint8 (N, C, H, W), or of any depth: noise is drawn afresh each time
    validation: torch.Tensor  # float32 (M, C, H, W) in [-1, 1]
    validation_noisy: torch.Tensor  # the same for every training
    noise: Noise | None  # None: real

    @classmethod
    def place(cls, images: Images, noise: str, device: torch.device, *, num_validation: int) -> DeviceImages:
        """Without a copy of the training images on the CPU. noise: a spec such as gaussian:30, or real."""
        noisy, clean = images.validation[:num_validation].noised(noise, "validation")
        return cls(
            train=_train_on(images.train, images.depth, device),
            validation=_on(clean, device),
            validation_noisy=_on(noisy, device),
            noise=None if noise == REAL else parse_noise(noise),
        )

    @property
    def device(self) -> torch.device:
        """Where everything is."""
        return self.validation.device

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what is trained on."""
        channels, height, width = self.validation.shape[1:]
        return channels, height, width

    def batch(self, rows: torch.Tensor, draw: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Noisy and clean, float32 (B, C, H, W) in [-1, 1], of these training images. Doesn't wait for the device."""
        if isinstance(self.train, DeviceRagged):
            clean, noisy = self.train.crops(rows, draw)
        else:
            clean, noisy = _unit(self.train[rows], EIGHT_BITS), None
        if noisy is None:
            assert self.noise is not None
            noisy = self.noise(clean, draw)
        return noisy, clean


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceRagged:
    """As Ragged, on a device; but pixels in a file stay there, and each batch's crops are fetched by the host."""

    pixels: torch.Tensor  # 16-bit ones as int16: torch has not all that it does for uint16 on every device
    noisy: torch.Tensor | None
    tiles: torch.Tensor
    channels: int
    crop: int
    depth: Depth

    def __len__(self) -> int:
        return len(self.tiles)

    def crops(self, rows: torch.Tensor, draw: torch.Generator) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Clean, and noisy where there are pairs: one crop at random out of the image of each row; as batch."""
        begin, height, width = self.tiles[rows].T[:, :, None, None, None]
        corner = torch.rand(2, len(rows), 1, 1, 1, generator=draw, device=rows.device)
        top, left = (corner[0] * (height - self.crop + 1)).long(), (corner[1] * (width - self.crop + 1)).long()
        side = torch.arange(self.crop, device=rows.device)
        channel = torch.arange(self.channels, device=rows.device)[:, None, None]
        places = begin + channel * height * width + (top + side[:, None]) * width + left + side
        return self._cut(self.pixels, places), None if self.noisy is None else self._cut(self.noisy, places)

    def _cut(self, pixels: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        return _unit(pixels[places.to(pixels.device)].to(places.device), self.depth)


def _train_on(train: np.ndarray | Ragged, depth: Depth, device: torch.device) -> torch.Tensor | DeviceRagged:
    if not isinstance(train, Ragged):
        return _on(train, device)
    noisy = None if train.noisy is None else _pixels_on(train.noisy, device)
    pixels, tiles = _pixels_on(train.pixels, device), _on(train.tiles, device)
    return DeviceRagged(pixels=pixels, noisy=noisy, tiles=tiles, channels=train.channels, crop=train.crop, depth=depth)


def _pixels_on(pixels: np.ndarray | PixelFile, device: torch.device) -> torch.Tensor:
    if isinstance(pixels, PixelFile):
        pixels, device = pixels.open(), torch.device("cpu")
    return _on(pixels.view(np.int16) if pixels.dtype == np.uint16 else pixels, device)


def _on(array: np.ndarray, device: torch.device) -> torch.Tensor:
    with warnings.catch_warnings():  # arrays out of Ray's object store are read-only; nothing here writes to them
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array).to(device)


def _unit(pixels: torch.Tensor, depth: Depth) -> torch.Tensor:
    """What Depth.to_unit gives, of pixels that nobody else has; see DeviceRagged."""
    values = (pixels.int().bitwise_and_(0xFFFF) if pixels.dtype == torch.int16 else pixels).float()
    if depth.low:
        values.sub_(depth.low)
    return values.div_(depth.half).sub_(1)


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
    size = _IDX_HEADER_BYTES + file.count * _SIDE**2
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as stream:
            content = stream.read(size + 1)  # 40 MB can unpack to 40 GB
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
        """See HTTPRedirectHandler; the last argument is where it leads."""
        if not given[-1].startswith("https://"):
            raise urllib.error.URLError(f"it leads to {given[-1]}, which is not https")
        return super().redirect_request(*given)


_HTTPS = urllib.request.build_opener(_OnlyHttps)


def _download(file: _IdxFile) -> Path:
    """Fetch from upstream into the cache; written only after its checksum matched."""
    url = _UPSTREAM + file.name
    log.warning("Fetching %s", url)
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
        if error.errno in FULL:
            raise
        raise DataError(f"{target.parent}: cannot be made ({error.strerror}); XDG_CACHE_HOME names another") from error
    part = target.with_name(f"{target.name}.{os.getpid()}")
    with writing(target):
        part.write_bytes(packed)
    part.replace(target)
    return target


if __name__ == "__main__":  # `make data`: have the files, or say how to get them
    for _split, _file in _FILES.items():
        print(f"Fashion-MNIST {_split}: {len(_fashion_mnist(_split)):,} images, checksum matches")
