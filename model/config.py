"""The hyperparameters of one training, as a frozen and validated value."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args, get_origin

from .common.errors import ConfigError
from .common.text import did_you_mean, truncated_repr
from .common.validation import field_types, matches_type, type_rule

Loss = Literal["l1", "ssim", "both", "mse"]
Adversarial = Literal["sigmoid", "least_squares", "hinge", "none"]
Output = Literal["direct", "residual"]
Upsample = Literal["transposed", "resize"]
Norm = Literal["batch", "instance", "none"]
Schedule = Literal["constant", "cosine"]
ValueRange: TypeAlias = tuple[float, float]  # black and white, as values of the pixels
Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """All hyperparameters of one pix2pix training.

    Widths, initialisation, learning rates, Adam's beta1 and the L1 weight default to those of the TensorFlow pix2pix
    tutorial (Isola et al. 2017, arXiv 1611.07004).

    Raises:
        ConfigError: with all errors at once.
    """

    loss: Loss = "l1"  # reconstruction loss: L1, 1 - SSIM, both of them, or mean squared error
    l1_weight: float = 100.0  # > 0; used when loss is l1 or both
    ssim_weight: float = 100.0  # > 0; used when loss is ssim or both
    mse_weight: float = 1000.0  # > 0; used when loss is mse; its gradient at errors of 0.05 then equals that of L1
    adversarial: Adversarial = "sigmoid"  # sigmoid: cross entropy; none: without the discriminator
    adversarial_weight: float = 1.0  # > 0; of the generator's adversarial loss
    lr_g: float = 2e-4  # Adam's learning rate of the generator, in (0, 1]
    lr_d: float = 2e-4  # Adam's learning rate of the discriminator, in (0, 1]
    lr_schedule: Schedule = "constant"  # cosine: both rates fall to zero over all epochs
    beta1: float = 0.5  # Adam's decay of the first moment, in [0, 1)
    beta2: float = 0.999  # Adam's decay of the second moment, in [0, 1)
    batch_size: int = 64  # images in a step; at least 2 with BatchNorm, which at 1x1 needs two values
    epochs: int = 12  # each ends with a report; >= 1. A learning-rate schedule spans them all
    images_per_epoch: int | None = None  # training images in an epoch; None: the whole training set
    width: int = 64  # channels of the first block of both networks, >= 1
    depth: int | None = None  # levels of the generator, each half as large, in [2, 8]; None: down to 1x1
    output: Output = "direct"  # residual: the generator predicts the difference to the noisy image
    full_resolution_skip: bool = False  # adds a convolution of the noisy image, joined before the last layer
    upsample: Upsample = "transposed"  # in the decoder; resize: nearest neighbours, then a convolution
    blocks: int = 0  # residual blocks in each level of a DRUNet-like U-Net; 0: the slides' U-Net
    norm: Norm = "batch"  # in the generator; the discriminator always has batch
    dropout: float = 0.5  # in the decoder's first three blocks, in [0, 1)
    patch: int = 34  # pixels that one logit of the discriminator sees: 34 or 14
    grad_clip: float = 2.0  # limit of each network's gradient norm, in multiples of its running mean; 0: none
    average_decay: float = 0.999  # of the moving average (EMA) of the generator's weights, in [0, 1); 0: none
    precision: Precision = "auto"  # autocast; auto: bfloat16 where the hardware multiplies it natively
    seed: int = 0  # of initialisation, order, noise and dropout, >= 0

    def __post_init__(self) -> None:
        errors = [*_wrong_types(self), *_wrong_values(self)]
        if errors:
            raise ConfigError("\n".join(errors))

    @property
    def weights(self) -> dict[str, float]:
        """The weights of the reconstruction losses that are used, by name: l1, ssim, mse."""
        names = ("l1", "ssim") if self.loss == "both" else (self.loss,)
        return {name: getattr(self, f"{name}_weight") for name in names}

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready. Fields without effect, such as the weight of an unused loss, are None."""
        unused = {f"{name}_weight" for name in ("l1", "ssim", "mse") if name not in self.weights}
        if self.adversarial == "none":
            unused |= {"adversarial_weight", "lr_d"}
        if self.blocks:  # the first level has full resolution anyway
            unused |= {"full_resolution_skip"}
        return {name: None if name in unused else value for name, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """The inverse of as_dict. Raises ConfigError for an unknown name, with the nearest field."""
        if not isinstance(values, Mapping):
            raise ConfigError(f"{truncated_repr(values)}: settings must be a mapping, such as {{'width': 32}}")
        unknown = [f"{name}: no such setting. {did_you_mean(name, FIELDS)}" for name in values if name not in FIELDS]
        if unknown:
            raise ConfigError("\n".join(unknown))
        return cls(**{name: value for name, value in values.items() if value is not None})


ARCHITECTURE = ("width", "depth", "output", "full_resolution_skip", "upsample", "blocks", "norm")  # of the generator
FIELDS: tuple[str, ...] = tuple(field.name for field in dataclasses.fields(TrainConfig))


def parse_setting(text: str) -> tuple[str, Any]:
    """Parse NAME=VALUE from a command line into the name and a value of the field's type. Raises ConfigError."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"{text}: a setting is NAME=VALUE, such as width=32")
    if name not in FIELDS:
        raise ConfigError(f"{name}: no such setting. {did_you_mean(name, FIELDS)}")
    kind = field_types(TrainConfig)[name]
    if get_origin(kind) is Literal:
        return name, value
    if kind is bool:
        if value not in _BOOLS:
            raise ConfigError(f"{name}={value}: {name} is true or false")
        return name, _BOOLS[value]
    optional = types.NoneType in get_args(kind)
    if optional and value == "none":
        return name, None
    number = int if int in (kind, *get_args(kind)) else float
    try:
        return name, number(value)
    except ValueError:
        rule = ("a whole number" if number is int else "a number") + " or none" * optional
        raise ConfigError(f"{name}={value}: {name} is {rule}, such as {name}={_example(name)}") from None


def reject_duplicate_settings(settings: Mapping[str, Any], own: Iterable[str]) -> None:
    """Raise ConfigError for settings of `--set` whose names are in `own`, the fields with an option of their own."""
    twice = sorted(set(own) & set(settings))
    if twice:
        hints = ", ".join(f"--{name.replace('_', '-')}" for name in twice)
        raise ConfigError(f"set={', '.join(twice)}: use its own option instead: {hints}")


_BOOLS = {"true": True, "false": False}


def _example(name: str) -> Any:
    default = next(field.default for field in dataclasses.fields(TrainConfig) if field.name == name)
    return {"depth": 3, "images_per_epoch": 8000}.get(name, default)


def _wrong_types(config: TrainConfig) -> list[str]:
    errors = []
    for name, kind in field_types(TrainConfig).items():
        value = getattr(config, name)
        if not matches_type(value, kind) or (kind is float and not math.isfinite(value)):
            rule = "a finite number" if kind is float else type_rule(kind)
            errors.append(f"{name}={truncated_repr(value)}: {name} is {rule}")
    return errors


MOST_EPOCHS = 10_000  # a search estimates its remaining epochs one by one, every second
_RULES: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
    (("l1_weight", "ssim_weight"), lambda v: v > 0, "above 0; set loss=l1 or loss=ssim to leave a loss out"),
    (("mse_weight",), lambda v: v > 0, "above 0; set another loss, such as loss=l1, to leave it out"),
    (("adversarial_weight",), lambda v: v > 0, "above 0; set adversarial=none to leave it out"),
    (("lr_g", "lr_d"), lambda v: 0 < v <= 1, "above 0 and at most 1, such as 2e-4"),
    (("beta1", "beta2", "dropout", "average_decay"), lambda v: 0 <= v < 1, "at least 0 and below 1"),
    (("grad_clip",), lambda v: v == 0 or v >= 1, "at least 1, or 0 for no limit"),
    (("batch_size",), lambda v: v >= 1, "at least 1"),
    (("epochs",), lambda v: 1 <= v <= MOST_EPOCHS, f"at least 1 and at most {MOST_EPOCHS}"),
    (("images_per_epoch",), lambda v: v >= 1, "at least 1"),
    (("width",), lambda v: 1 <= v <= 1024, "at least 1 and at most 1024"),  # 4 GB of weights
    (("depth",), lambda v: 2 <= v <= 8, "from 2 to 8"),
    (("patch",), lambda v: v in (14, 34), "14 or 34"),
    (("blocks",), lambda v: 0 <= v <= 64, "0 or above, and at most 64"),
    (("seed",), lambda v: v >= 0, "0 or above"),
)


def _wrong_values(config: TrainConfig) -> list[str]:
    errors = []
    for names, holds, rule in _RULES:
        for name in names:
            value = getattr(config, name)
            if matches_type(value, float) and math.isfinite(value) and not holds(value):
                errors.append(f"{name}={value}: {name} must be {rule}")
    if matches_type(config.batch_size, int) and config.batch_size == 1 and config.norm == "batch":
        errors.append("batch_size=1: must be at least 2, because BatchNorm needs two values; or set norm=instance")
    size = config.images_per_epoch
    are_integers = matches_type(size, int) and matches_type(config.batch_size, int)
    if are_integers and size is not None and 1 <= size < config.batch_size:
        errors.append(f"images_per_epoch={size}: must be at least the batch size, {config.batch_size}")
    return errors
