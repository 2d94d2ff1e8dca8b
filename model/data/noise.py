"""Noise models, named by a short spec: `gaussian:30`, `gaussian:12%`, `poisson:10-60`, `poisson:30+gaussian:10`.

docs/data.md describes them. Parsing a spec does not load torch; adding the noise does.
"""

from __future__ import annotations

import io
import math
import re
from abc import ABC, abstractmethod
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

REAL = "real"  # instead of a spec: the noise is in the files
_MAX_SPEC = 200  # characters: ten noises in a row
_NUMBER = r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+"
_RANGE = re.compile(f"({_NUMBER})(%?)(?:-({_NUMBER})(%?))?")


@dataclass(frozen=True, slots=True)
class Range:
    """The range of a parameter, drawn uniformly for each image; one value where low equals high."""

    low: float
    high: float

    def __str__(self) -> str:
        low, high = f"{self.low:.15g}", f"{self.high:.15g}"
        return low if low == high else f"{low}-{high}"


@dataclass(frozen=True, slots=True)
class Parameter:
    """The rules of one number of a spec. It has the name of a field."""

    name: str
    least: float  # 0: exclusive
    most: float
    unit: str
    whole: bool = False
    takes_per_cent: bool = False  # of the images' range

    def problem(self, value: Range) -> str | None:
        """The error message for a value, or None if it is valid."""
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
    """A noise model. Raises ConfigError with all parameters that are out of range."""

    PARAMETERS: ClassVar[tuple[Parameter, ...]] = ()  # in the order of a spec
    EXAMPLE: ClassVar[str] = ""

    def __post_init__(self) -> None:
        problems = [parameter.problem(getattr(self, parameter.name)) for parameter in self.PARAMETERS]
        if errors := [f"{problem}, as in {self.EXAMPLE}" for problem in problems if problem]:
            raise ConfigError("\n".join(errors))

    @abstractmethod
    def add_to(self, image: torch.Tensor, draw: Draw) -> torch.Tensor:
        """Add the noise to images (N, C, H, W); input and result may exceed [-1, 1]."""

    def __call__(self, clean: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return noisy copies of clean images (N, C, H, W) in [-1, 1], with random numbers on their device."""
        from .noise_draws import TorchDraw

        return self.add_to(clean, TorchDraw(generator, len(clean), clean.device)).clamp(-1, 1)

    def fixed(self, clean: np.ndarray, *, seed: int) -> np.ndarray:
        """Return noisy copies of (N, C, H, W) float32 images in [-1, 1], for validation and test.

        The noise is the same for the same (seed, index) on any machine.
        """
        import torch

        from .noise_draws import NumpyDraw

        noisy = np.empty_like(clean)
        for index, image in enumerate(clean):
            draw = NumpyDraw(np.random.Generator(np.random.Philox(key=[seed, index])))
            noisy[index] = self.add_to(torch.from_numpy(image[None].copy()), draw).clamp(-1, 1)[0].numpy()
        return noisy

    def units(self) -> str:
        """The meaning of the numbers in its spec."""
        return "; ".join(f"{parameter.name.upper()}: {parameter.unit}" for parameter in self.PARAMETERS)


@dataclass(frozen=True, slots=True)
class GaussianNoise(Noise):
    """White noise, independent of the intensity L: L + N."""

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
    """Noise proportional to the intensity L in [0, 1]: L + L * N."""

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
        drawn, share = draw.uniform((num_images, 1, height, width)), draw.each(self.share)
        return torch.where(drawn < share, torch.where(drawn * 2 < share, -1.0, 1.0), image)


@dataclass(frozen=True, slots=True)
class JpegNoise(Noise):
    """Artefacts of 8-bit JPEG by Pillow's defaults; grey (C = 1) or RGB (C = 3). It synchronises with the device."""

    quality: Range

    PARAMETERS = (Parameter("quality", 1, 100, "as Pillow counts it", whole=True),)
    EXAMPLE = "jpeg:20"

    def add_to(self, image: torch.Tensor, draw: Draw) -> torch.Tensor:
        import torch

        drawn = torch.as_tensor(draw.each(Range(self.quality.low, self.quality.high + 1)))
        qualities = drawn.floor().clamp(max=self.quality.high).flatten().tolist()  # rounding may reach the upper bound
        pixels = to_uint8(image.cpu().numpy())
        decoded = np.stack([_through_jpeg(p, int(q)) for p, q in zip(pixels, qualities, strict=True)])
        return torch.from_numpy(decoded).to(image.device).float() / 127.5 - 1


@dataclass(frozen=True, slots=True)
class CorrelatedNoise(Noise):
    """Grainy Gaussian noise: white noise after a Gaussian blur, scaled to its standard deviation.

    Two pixels at a distance d correlate by exp(-d^2 / (4 size^2)), for sizes from 1 on. Channels are independent.
    """

    std: Range
    size: Range

    PARAMETERS = (_STD, Parameter("size", 0.1, 10, "pixels, the blur's standard deviation"))
    EXAMPLE = "correlated:30:1.5"

    def add_to(self, image: torch.Tensor, draw: Draw) -> torch.Tensor:
        from .noise_draws import STD_SCALE

        num_images, channels, height, width = image.shape
        std, size = draw.each(self.std), draw.each(self.size)
        reach = math.ceil(_BLUR_REACH * self.size.high)  # noise beyond the edges: edge pixels are not special
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


_BLUR_REACH = 4.0  # standard deviations, as in SciPy's gaussian_filter


def _intensity(image: torch.Tensor) -> torch.Tensor:
    """Convert [-1, 1] to [0, 1]: light is not negative, and saturates at white."""
    return (image.clamp(-1, 1) + 1) / 2


def _blur(length: int, reach: int, size: float | torch.Tensor, device: torch.device) -> torch.Tensor:
    """The matrix that blurs one axis, (..., length, length + 2 * reach).

    The squares of a row sum to 1, so that white noise keeps its variance.
    """
    import torch

    distance = torch.arange(length + 2 * reach, device=device) - torch.arange(length, device=device)[:, None] - reach
    weights = torch.exp(-0.5 * (distance / size).square()) * (distance.abs() <= reach)
    return weights / weights.square().sum(-1, keepdim=True).sqrt()


def _through_jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    """Encode and decode (C, H, W) uint8."""
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
    """Parse `KIND:NUMBER`, where a number may be a range LOW-HIGH, or a sum of such noises. Raises ConfigError."""
    if len(spec) > _MAX_SPEC:
        size = f"{len(spec)} characters; a noise has at most {_MAX_SPEC}, such as {_SUM_EXAMPLE}"
        raise ConfigError(f"noise={_shown(spec[:40])}...: {size}")
    stages, errors = [], []
    for stage in spec.split("+"):
        try:
            stages.append(_parse_stage(stage))
        except ConfigError as error:
            errors += [f"noise={_shown(stage or spec)}: {line}" for line in str(error).splitlines()]
    if errors:
        raise ConfigError("\n".join(dict.fromkeys(errors)))
    return stages[0] if len(stages) == 1 else NoiseSum(tuple(stages))


def _parse_stage(stage: str) -> Noise:
    name, *numbers = stage.split(":")
    kind = KINDS.get(name)
    if kind is None:
        rule = f"no such noise. {did_you_mean(name, KINDS)}" if stage else "a noise is missing."
        raise ConfigError(f"{rule} Examples: {', '.join(each.EXAMPLE for each in KINDS.values())}, {_SUM_EXAMPLE}")
    matches = [match for number in numbers if (match := _RANGE.fullmatch(number))]
    if not len(matches) == len(numbers) == len(kind.PARAMETERS):
        form = ":".join((name, *(parameter.name.upper() for parameter in kind.PARAMETERS)))
        raise ConfigError(f"must be {form}, with a number or a range LOW-HIGH for each, such as {kind.EXAMPLE}")
    ranges = [_range_of(match, parameter) for match, parameter in zip(matches, kind.PARAMETERS, strict=True)]
    return kind(*ranges)


def _range_of(match: re.Match[str], parameter: Parameter) -> Range:
    """Parse a number or range. Raises ConfigError for a % that is not allowed."""
    low, low_sign, high, high_sign = match.groups()
    if high is not None and low_sign != high_sign:
        raise ConfigError(f"{match[0]}: both bounds must have a %, or neither, such as {low}%-{high}%")
    if low_sign and not parameter.takes_per_cent:
        raise ConfigError(f"{parameter.name.upper()}={match[0]}: must not have a %; its unit is {parameter.unit}")
    low, high = float(low), float(high or low)
    return Range(255 * low / 100, 255 * high / 100) if low_sign else Range(low, high)


def _shown(text: str) -> str:
    return text if text.isprintable() else repr(text)
