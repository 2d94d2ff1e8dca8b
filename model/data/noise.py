"""Noise models, named by a short spec: `gaussian:30`, `gaussian:12%`, `poisson:10-60`, `poisson:30+gaussian:10`;
docs/data.md. A spec is checked without loading torch; what adds the noise imports it."""

from __future__ import annotations

import io
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from PIL import Image

from ..common.errors import ConfigError
from ..common.text import did_you_mean
from ..picture_strip import to_uint8

if TYPE_CHECKING:
    import torch

    from .noise_draws import Draw

REAL = "real"  # in place of a noise: it is in the files
_MAX_SPEC = 200  # characters: ten noises in a row
_NUMBER = r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+"
_RANGE = re.compile(f"({_NUMBER})(%?)(?:-({_NUMBER})(%?))?")


@dataclass(frozen=True, slots=True)
class Range:
    """Of one parameter: drawn uniformly for each image; one value where low equals high."""

    low: float
    high: float

    def __str__(self) -> str:
        low, high = f"{self.low:.15g}", f"{self.high:.15g}"
        return low if low == high else f"{low}-{high}"


@dataclass(frozen=True, slots=True)
class Parameter:
    """What one number of a spec may be. Its name is the field's."""

    name: str
    least: float  # 0: above it
    most: float
    unit: str
    whole: bool = False
    takes_per_cent: bool = False  # of the images' range

    def mistake(self, value: Range) -> str | None:
        """The broken rule and the value, or None."""
        bounds = (value.low, value.high)
        rule = f"above 0 and at most {self.most}" if self.least == 0 else f"from {self.least} to {self.most}"
        within = all(bound > 0 and self.least <= bound <= self.most for bound in bounds)
        if not within or (self.whole and not all(float(bound).is_integer() for bound in bounds)):
            rule = f"a whole number {rule}" if self.whole else rule
        elif value.low > value.high:
            rule = f"LOW-HIGH, such as {Range(value.high, value.low)}"
        else:
            return None
        return f"{self.name.upper()}={value} must be {rule} ({self.unit})"


_STD = Parameter("std", 0, 255, "on the scale of 8-bit images", takes_per_cent=True)

# --- the noises -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Noise(ABC):
    """What makes a clean image noisy. The physics is written once, in add_to; the two ways of drawing share it.
    Raises ConfigError, naming all parameters that are out of range."""

    PARAMETERS: ClassVar[tuple[Parameter, ...]] = ()  # as they follow one another in a spec
    EXAMPLE: ClassVar[str] = ""

    def __post_init__(self) -> None:
        found = [parameter.mistake(getattr(self, parameter.name)) for parameter in self.PARAMETERS]
        if mistakes := [f"{mistake}, as in {self.EXAMPLE}" for mistake in found if mistake]:
            raise ConfigError("\n".join(mistakes))

    @abstractmethod
    def add_to(self, image: torch.Tensor, draw: Draw) -> torch.Tensor:
        """The images (N, C, H, W), which may reach beyond [-1, 1], with the noise, which may too."""

    def __call__(self, clean: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Noisy copies of clean (N, C, H, W) in [-1, 1], drawn afresh on clean's device; only jpeg waits for it."""
        from .noise_draws import TorchDraw

        return self.add_to(clean, TorchDraw(generator, len(clean), clean.device)).clamp(-1, 1)

    def fixed(self, clean: np.ndarray, *, seed: int) -> np.ndarray:
        """The same noise for the same (seed, index) on any machine and device: for validation and test.

        clean: (N, C, H, W) float32 in [-1, 1]; gives the same shape and type.
        """
        import torch

        from .noise_draws import NumpyDraw

        noisy = np.empty_like(clean)
        for index, image in enumerate(clean):
            draw = NumpyDraw(np.random.Generator(np.random.Philox(key=[seed, index])))
            noisy[index] = self.add_to(torch.from_numpy(image[None].copy()), draw).clamp(-1, 1)[0].numpy()
        return noisy

    def units(self) -> str:
        """What the numbers of its spec mean."""
        return "; ".join(f"{parameter.name.upper()}: {parameter.unit}" for parameter in self.PARAMETERS)


@dataclass(frozen=True, slots=True)
class GaussianNoise(Noise):
    """White noise, the same for every grey: L + N."""

    std: Range

    PARAMETERS = (_STD,)
    EXAMPLE = "gaussian:30"

    def add_to(self, image: torch.Tensor, draw: Draw) -> torch.Tensor:
        return draw.add_gaussian(image, self.std)


@dataclass(frozen=True, slots=True)
class PoissonNoise(Noise):
    """Shot noise: Poisson(L * peak) / peak on the intensity in [0, 1]; variance L / peak."""

    peak: Range

    PARAMETERS = (Parameter("peak", 0.1, 100_000, "photons of a white pixel"),)
    EXAMPLE = "poisson:30"

    def add_to(self, image: torch.Tensor, draw: Draw) -> torch.Tensor:
        peak = draw.each(self.peak)
        return draw.poisson(_intensity(image) * peak) / peak * 2 - 1


@dataclass(frozen=True, slots=True)
class SpeckleNoise(Noise):
    """Noise in proportion to the intensity L in [0, 1]: L + L * N."""

    ratio: Range

    PARAMETERS = (Parameter("ratio", 0, 1, "standard deviation as a fraction of the intensity"),)
    EXAMPLE = "speckle:0.2"

    def add_to(self, image: torch.Tensor, draw: Draw) -> torch.Tensor:
        intensity = _intensity(image)
        speckles = draw.normal(tuple(image.shape)) * draw.each(self.ratio)
        return (intensity + intensity * speckles) * 2 - 1


@dataclass(frozen=True, slots=True)
class SaltPepperNoise(Noise):
    """Dead pixels: white or black, with the same probability, in all channels at once."""

    share: Range

    PARAMETERS = (Parameter("share", 0, 1, "of the pixels"),)
    EXAMPLE = "salt-pepper:0.05"

    def add_to(self, image: torch.Tensor, draw: Draw) -> torch.Tensor:
        import torch

        num_images, _, height, width = image.shape
        lot, share = draw.uniform((num_images, 1, height, width)), draw.each(self.share)
        return torch.where(lot < share, torch.where(lot * 2 < share, -1.0, 1.0), image)


@dataclass(frozen=True, slots=True)
class JpegNoise(Noise):
    """What 8-bit JPEG leaves of the image, by Pillow with its own defaults; grey (C = 1) or RGB (C = 3). Goes through
    the host: the device is waited for."""

    quality: Range

    PARAMETERS = (Parameter("quality", 1, 100, "as Pillow counts it", whole=True),)
    EXAMPLE = "jpeg:20"

    def add_to(self, image: torch.Tensor, draw: Draw) -> torch.Tensor:
        import torch

        drawn = torch.as_tensor(draw.each(Range(self.quality.low, self.quality.high + 1)))
        qualities = drawn.floor().clamp(max=self.quality.high).flatten().tolist()  # rounding may reach the bound
        pixels = to_uint8(image.cpu().numpy())
        decoded = np.stack([_through_jpeg(p, int(q)) for p, q in zip(pixels, qualities, strict=True)])
        return torch.from_numpy(decoded).to(image.device).float() / 127.5 - 1


@dataclass(frozen=True, slots=True)
class CorrelatedNoise(Noise):
    """Gaussian noise of a grain: white noise after a Gaussian blur, then brought to its standard deviation. Two pixels
    at a distance d correlate by exp(-d^2 / (4 size^2)), for sizes from 1 on. Every channel has its own."""

    std: Range
    size: Range

    PARAMETERS = (
        _STD,
        Parameter("size", 0.1, 10, "pixels, the blur's standard deviation"),
    )
    EXAMPLE = "correlated:30:1.5"

    def add_to(self, image: torch.Tensor, draw: Draw) -> torch.Tensor:
        from .noise_draws import STD_SCALE

        num_images, channels, height, width = image.shape
        std, size = draw.each(self.std), draw.each(self.size)
        reach = math.ceil(_BLUR_REACH * self.size.high)  # white noise beyond the edges too, so that no pixel is special
        white = draw.normal((num_images, channels, height + 2 * reach, width + 2 * reach))
        rows, columns = (_blur(side, reach, size, image.device) for side in (height, width))
        return image + rows @ white @ columns.mT * (std * STD_SCALE)


@dataclass(frozen=True, slots=True)
class NoiseSum(Noise):
    """One noise after another, from left to right."""

    stages: tuple[Noise, ...]

    def add_to(self, image: torch.Tensor, draw: Draw) -> torch.Tensor:
        for stage in self.stages:
            image = stage.add_to(image, draw)
        return image

    def units(self) -> str:
        return "; ".join(dict.fromkeys(stage.units() for stage in self.stages))


_BLUR_REACH = 4.0  # standard deviations; SciPy's gaussian_filter cuts there too


def _intensity(image: torch.Tensor) -> torch.Tensor:
    """[-1, 1] to [0, 1]: there is no light below black, and none is counted above white."""
    return (image.clamp(-1, 1) + 1) / 2


def _blur(length: int, reach: int, size: float | torch.Tensor, device: torch.device) -> torch.Tensor:
    """The matrix that blurs one axis, (..., length, length + 2 * reach). The squares of a row sum to 1: white noise
    keeps its variance."""
    import torch

    distance = torch.arange(length + 2 * reach, device=device) - torch.arange(length, device=device)[:, None] - reach
    weights = torch.exp(-0.5 * (distance / size).square()) * (distance.abs() <= reach)
    return weights / weights.square().sum(-1, keepdim=True).sqrt()


def _through_jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    """(C, H, W) uint8, and gives the same."""
    file = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(file, "JPEG", quality=quality)
    with Image.open(file, formats=("JPEG",)) as image:
        decoded = np.asarray(image)
    return decoded[None] if decoded.ndim == 2 else decoded.transpose(2, 0, 1)


# --- specs ----------------------------------------------------------------------------------------------------------

KINDS: dict[str, type[Noise]] = {
    "gaussian": GaussianNoise,
    "poisson": PoissonNoise,
    "speckle": SpeckleNoise,
    "salt-pepper": SaltPepperNoise,
    "jpeg": JpegNoise,
    "correlated": CorrelatedNoise,
}
_SUM_EXAMPLE = "poisson:30+gaussian:10"


def parse_noise(spec: str) -> Noise:
    """From `KIND:NUMBER`, where a number may be a range LOW-HIGH, and from sums of such. Raises ConfigError, naming
    all mistakes at once."""
    if len(spec) > _MAX_SPEC:
        raise ConfigError(
            f"noise={_shown(spec[:40])}...: {len(spec)} characters; a noise has at most {_MAX_SPEC}, "
            f"such as {_SUM_EXAMPLE}"
        )
    stages, mistakes = [], []
    for stage in spec.split("+"):
        try:
            stages.append(_parse_stage(stage))
        except ConfigError as error:
            mistakes += [f"noise={_shown(stage or spec)}: {line}" for line in str(error).splitlines()]
    if mistakes:
        raise ConfigError("\n".join(dict.fromkeys(mistakes)))
    return stages[0] if len(stages) == 1 else NoiseSum(tuple(stages))


def _parse_stage(stage: str) -> Noise:
    name, *numbers = stage.split(":")
    kind = KINDS.get(name)
    if kind is None:
        rule = f"no such noise. {did_you_mean(name, KINDS)}" if stage else "a noise is missing there."
        raise ConfigError(f"{rule} Examples: {', '.join(each.EXAMPLE for each in KINDS.values())}, {_SUM_EXAMPLE}")
    matches = [match for number in numbers if (match := _RANGE.fullmatch(number))]
    if not len(matches) == len(numbers) == len(kind.PARAMETERS):
        form = ":".join((name, *(parameter.name.upper() for parameter in kind.PARAMETERS)))
        raise ConfigError(f"must be {form}, with a number or a range LOW-HIGH for each, such as {kind.EXAMPLE}")
    ranges = [_range_of(match, parameter) for match, parameter in zip(matches, kind.PARAMETERS, strict=True)]
    make: Callable[..., Noise] = kind
    return make(*ranges)


def _range_of(match: re.Match[str], parameter: Parameter) -> Range:
    """Raises ConfigError for a % where there is none."""
    low, low_sign, high, high_sign = match.groups()
    if high is not None and low_sign != high_sign:
        raise ConfigError(f"{match[0]}: both bounds have a %, or none has, such as {low}%-{high}%")
    if low_sign and not parameter.takes_per_cent:
        raise ConfigError(f"{parameter.name.upper()}={match[0]}: has no %; it counts {parameter.unit}")
    low, high = float(low), float(high or low)
    return Range(255 * low / 100, 255 * high / 100) if low_sign else Range(low, high)


def _shown(text: str) -> str:
    return text if text.isprintable() else repr(text)
