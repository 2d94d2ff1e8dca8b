"""Which images are trained on, and how they are made noisy; loads them."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

from ..common.errors import ConfigError
from ..common.text import did_you_mean
from ..common.validation import wrong_fields
from ..config import ValueRange
from .fashion_mnist import PADDING, fashion_mnist
from .image_folder import CROPS, FASHION_MNIST, Pictures, read_pictures
from .image_formats import DataError
from .image_sets import ImagePairs, Images, VariableSizeImages
from .memory_mapped import PixelFiles
from .noise import REAL, parse_noise
from .pictures import crop_grid
from .pixel_format import format_range, range_problem

NUM_VALIDATION = 5_000  # the last of the training images; test images choose nothing
_CROP = 64
_MEASURED = 10_000  # of the training images


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which images, and how they are made noisy. Raises ConfigError."""

    data: str = "fashion-mnist"  # or a folder, or s3://BUCKET/PREFIX: see model.data.image_folder
    noise: str = "gaussian:30"  # see model.data.noise; of noisy/clean pairs: real
    crop: int | None = None  # pixels a side that are trained on, of a folder's images; None: 64
    range: ValueRange | None = None  # black and white of 16-bit and float32 images; None: see model.data.pixel_format

    def __post_init__(self) -> None:
        if isinstance(self.range, list):  # out of JSON
            object.__setattr__(self, "range", tuple(self.range))
        if wrong := wrong_fields(DataConfig, dataclasses.asdict(self)):
            raise ConfigError("\n".join(wrong))
        mistakes = []
        if not self.is_folder and self.data != FASHION_MNIST:
            mistakes.append(
                f"data={self.data}: neither a data set nor a folder. {did_you_mean(self.data, [FASHION_MNIST])}"
            )
        if self.crop is not None and not self.is_folder:
            mistakes.append(f"crop={self.crop}: is for a folder of images; those of {FASHION_MNIST} have 32x32 pixels")
        elif self.crop not in (None, *CROPS):
            mistakes.append(f"crop={self.crop}: must be one of {', '.join(map(str, CROPS))}, which the network halves")
        if self.range is not None and not self.is_folder:
            mistakes.append(f"range={format_range(self.range)}: is for a folder of 16-bit or float32 images")
        elif mistake := range_problem(self.range):
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
            train = fashion_mnist("train")
            fashion_mnist("test")  # nobody looks at it yet, but if it is damaged, that is told now
            return Images(
                train=train[:-NUM_VALIDATION], validation=ImagePairs(train[-NUM_VALIDATION:]), padding=PADDING
            )
        found = self._pictures(store)
        crops = VariableSizeImages.from_pictures(found.splits["train"], self._side, store)
        return Images(train=crops, validation=self._grid(found, "validation"), messages=found.messages)

    @property
    def is_slides(self) -> bool:
        """Whether the slides' figures are of these images and this noise."""
        return (self.data, self.noise) == (FASHION_MNIST, "gaussian:30")

    def load_train(self, store: PixelFiles | None = None) -> ImagePairs:
        """A part of the training images, for measuring on them; as load."""
        if self.is_folder:
            return self._grid(self._pictures(store), "train")
        return ImagePairs(fashion_mnist("train")[:_MEASURED])

    def load_test(self, store: PixelFiles | None = None) -> ImagePairs:
        """The test images, for measuring what was chosen; as load."""
        if self.is_folder:
            return self._grid(self._pictures(store), "test")
        return ImagePairs(fashion_mnist("test"))

    @property
    def _side(self) -> int:
        return self.crop or _CROP

    def _grid(self, found: Pictures, split: str) -> ImagePairs:
        return ImagePairs(*crop_grid(found.splits[split], self._side), found.pixel_format)

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
