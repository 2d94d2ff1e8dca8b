"""Configures and loads the images of a training, and their noise."""

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

NUM_VALIDATION = 5_000  # the last training images of Fashion-MNIST
_DEFAULT_CROP = 64
_NUM_MEASURED = 10_000  # training images of Fashion-MNIST that an evaluation uses


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which images, and which noise. Raises ConfigError."""

    data: str = "fashion-mnist"  # or a folder, or s3://BUCKET/PREFIX: see model.data.image_folder
    noise: str = "gaussian:30"  # see model.data.noise; real: of noisy/clean pairs
    crop: int | None = None  # side of the training crops of a folder's images, pixels; None: 64
    range: ValueRange | None = None  # black and white of 16-bit and float32 images; None: see model.data.pixel_format

    def __post_init__(self) -> None:
        if isinstance(self.range, list):  # from JSON
            object.__setattr__(self, "range", tuple(self.range))
        if wrong := wrong_fields(DataConfig, dataclasses.asdict(self)):
            raise ConfigError("\n".join(wrong))
        errors = []
        if not self.is_folder and self.data != FASHION_MNIST:
            hint = did_you_mean(self.data, [FASHION_MNIST])
            errors.append(f"data={self.data}: neither a data set nor a folder. {hint}")
        if self.crop is not None and not self.is_folder:
            errors.append(f"crop={self.crop}: is for a folder of images; those of {FASHION_MNIST} have 32x32 pixels")
        elif self.crop not in (None, *CROPS):
            errors.append(f"crop={self.crop}: must be one of {', '.join(map(str, CROPS))}, which the network halves")
        if self.range is not None and not self.is_folder:
            errors.append(f"range={format_range(self.range)}: is for a folder of 16-bit or float32 images")
        elif problem := range_problem(self.range):
            errors.append(problem)
        if self.noise == REAL and not self.is_folder:
            errors.append(f"noise={REAL}: is for a folder of noisy/clean pairs")
        if self.noise != REAL:
            try:
                parse_noise(self.noise)
            except ConfigError as error:
                errors.append(str(error))
        if errors:
            raise ConfigError("\n".join(errors))

    @classmethod
    def from_dict(cls, values: Any) -> DataConfig:
        """Parse the values of a manifest. Raises ConfigError."""
        if wrong := wrong_fields(cls, values):
            raise ConfigError("\n".join(wrong))
        return cls(**values)

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder or an s3:// prefix, and not a data set with a name."""
        return self.data != FASHION_MNIST and ("/" in self.data or os.path.isdir(self.data))

    def load(self, store: PixelFiles | None = None) -> Images:
        """Load the training and validation images.

        Args:
            store: receives pixels that do not fit in memory; they are readable while it is open.

        Raises:
            DataError: the images cannot be used.
            MachineError: an S3 server does not answer.
        """
        if not self.is_folder:
            train = fashion_mnist("train")
            fashion_mnist("test")  # fails now, rather than after the search, if it is damaged
            validation = ImagePairs(train[-NUM_VALIDATION:])
            return Images(train=train[:-NUM_VALIDATION], validation=validation, padding=PADDING)
        pictures = self._pictures(store)
        crops = VariableSizeImages.from_pictures(pictures.splits["train"], self._side, store)
        return Images(train=crops, validation=self._grid(pictures, "validation"), messages=pictures.messages)

    @property
    def is_slides(self) -> bool:
        """Whether the slides have figures for these images and this noise."""
        return (self.data, self.noise) == (FASHION_MNIST, "gaussian:30")

    def load_train(self, store: PixelFiles | None = None) -> ImagePairs:
        """Load a part of the training images, to measure a model on them; see load."""
        if self.is_folder:
            return self._grid(self._pictures(store), "train")
        return ImagePairs(fashion_mnist("train")[:_NUM_MEASURED])

    def load_test(self, store: PixelFiles | None = None) -> ImagePairs:
        """Load the test images, to measure a chosen model; see load."""
        if self.is_folder:
            return self._grid(self._pictures(store), "test")
        return ImagePairs(fashion_mnist("test"))

    @property
    def _side(self) -> int:
        return self.crop or _DEFAULT_CROP

    def _grid(self, pictures: Pictures, split: str) -> ImagePairs:
        return ImagePairs(*crop_grid(pictures.splits[split], self._side), pictures.pixel_format)

    def _pictures(self, store: PixelFiles | None) -> Pictures:
        pictures = read_pictures(self.data, self._side, store, self.range)
        are_pairs = pictures.splits["train"][0].noisy is not None
        if are_pairs and self.noise != REAL:
            raise DataError(f"noise={self.noise}: {self.data} has pairs, whose noise is in the files: --noise {REAL}")
        if self.noise == REAL and not are_pairs:
            raise DataError(f"noise={REAL}: {self.data} has no noisy/ beside clean/; name a noise, such as gaussian:30")
        if not pictures.has_noise:
            raise DataError(f"data={self.data}: all noisy images equal their clean ones: nothing to learn")
        return pictures
