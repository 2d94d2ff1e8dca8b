"""The report of an epoch, the objective of a search, and when a training has failed. Does not load torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

_DEAD_STD = 0.01  # Fashion-MNIST itself has 0.5
LOSS_NAMES = ("gen_total", "gen_adversarial", "gen_reconstruction", "disc_real", "disc_generated")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalReport:
    """The report of one epoch. Metrics are means over the validation images, losses over the epoch's steps."""

    epoch: int  # from 1
    images: int  # training images seen since the start
    ssim: float
    psnr_db: float
    l1: float  # mean absolute error on [-1, 1]
    noisy_psnr_db: float  # of the validation images before denoising
    output_std: float  # over images, mean over pixels; about 0: the output ignores the input
    gen_total: float
    gen_adversarial: float
    gen_reconstruction: float  # weighted sum of the reconstruction losses
    disc_real: float
    disc_generated: float
    seconds: float  # training
    eval_seconds: float
    haarpsi: float = math.nan  # older reports lack it

    @property
    def is_dead(self) -> bool:
        """Whether the output hardly varies between images, or is worse than the noisy input."""
        return self.output_std < _DEAD_STD or self.psnr_db < self.noisy_psnr_db

    @property
    def images_per_second(self) -> float:
        """Training speed of this epoch; all epochs have the same number of images."""
        return self.images / self.epoch / self.seconds if self.seconds > 0 else math.inf

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: values that are not finite become the string "nan", "inf" or "-inf". An unmeasured HaarPSI is
        left out."""
        values = dataclasses.asdict(self)
        if math.isnan(self.haarpsi):
            del values["haarpsi"]
        return {k: v if math.isfinite(v) else str(v) for k, v in values.items()}

    def curves(self) -> dict[str, float]:
        """The curves over epochs, by their names in W&B and TensorBoard."""
        return self.validation_curves() | {f"train/{name}": getattr(self, name) for name in LOSS_NAMES}

    def validation_curves(self) -> dict[str, float]:
        """Those of the metrics."""
        values = {"val/ssim": self.ssim, "val/psnr": self.psnr_db, "val/l1": self.l1}
        return values if math.isnan(self.haarpsi) else {**values, "val/haarpsi": self.haarpsi}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EvalReport:
        """The inverse of as_dict."""
        fields = dataclasses.fields(cls)
        given = [field.name for field in fields if field.name in values or field.default is dataclasses.MISSING]
        numbers: dict[str, Any] = {name: float(values[name]) for name in given}
        return cls(**{**numbers, "epoch": int(values["epoch"]), "images": int(values["images"])})


Objective = Literal["balanced", "ssim", "psnr", "l1", "haarpsi"]
# Imperceptible differences. Over 17 networks of four searches, from 27.0 to 28.3 dB, 0.04 dB of PSNR are 0.0008 of
# SSIM, 0.0010 of HaarPSI and 0.0002 of L1 (least squares).
SMALL: dict[Objective, float] = {
    "balanced": 0.001,
    "ssim": 0.001,
    "psnr": 0.04,
    "l1": 0.0002,
    "haarpsi": 0.001,
}
_FLOORS: dict[Objective, float] = {"balanced": -1.0, "ssim": -1.0, "psnr": 0.0, "l1": -2.0, "haarpsi": 0.0}


def objective_value(metrics: Mapping[str, Any] | EvalReport, objective: Objective) -> float:
    """The value that a search maximises, so -L1 for l1; always finite, at worst the worst possible value.

    It is never a loss, because searched weights rescale losses. balanced is SSIM + PSNR/40: 0.01 of SSIM equals 0.4 dB,
    about their exchange rate near the best configurations.

    Args:
        metrics: a report, or a mapping with `ssim`, `psnr_db`, `l1` and `haarpsi` as far as the objective needs them.
    """

    def metric(name: str) -> float:
        return float(metrics[name] if isinstance(metrics, Mapping) else getattr(metrics, name))

    value: float = _combine(metric, objective)
    return value if math.isfinite(value) else _FLOORS[objective]


def objective_of_images(each: Mapping[str, Any], objective: Objective) -> Any:
    """The objective of each image, an array like those in `each`, the metrics of each image by name. Its mean is
    objective_value of the means, since every objective is a weighted sum of metrics."""
    return _combine(each.__getitem__, objective)


def _combine(metric: Callable[[str], Any], objective: Objective) -> Any:
    if objective == "balanced":
        return metric("ssim") + metric("psnr_db") / 40
    if objective == "l1":
        return -metric("l1")
    return metric({"psnr": "psnr_db"}.get(objective, objective))


_ALIVE_DB = 1.0  # above the noisy input: a residual output starts there, and varies by hundredths of a dB
_GRACE_IMAGES = 30_000  # the slides' own settings are still below the noisy input after 8,000 images at width 8


def failure_reason(reports: Sequence[EvalReport], *, is_last: bool = False) -> Literal["diverged", "collapsed"] | None:
    """Why a training should end early: `diverged`, `collapsed` or None.

    Diverged: the last report has a value that is not finite. Collapsed: two dead epochs in a row, after an epoch that
    was 1 dB better than the noisy input, or after 30,000 training images.

    Args:
        reports: of the epochs 1, 2, 3, ... so far.
        is_last: whether no epoch follows; then one dead epoch after a good one is enough.
    """
    if not reports:
        return None
    last = reports[-1]
    losses_and_metrics = (last.ssim, last.psnr_db, last.l1, last.gen_total, last.disc_real, last.disc_generated)
    if not all(math.isfinite(value) for value in losses_and_metrics):
        return "diverged"
    dead = [report.is_dead for report in reports]
    was_alive = any(not report.is_dead and report.psnr_db >= report.noisy_psnr_db + _ALIVE_DB for report in reports)
    past_grace = len(reports) > 1 and reports[-2].images > _GRACE_IMAGES
    num_needed = 1 if was_alive and is_last else 2
    if all(dead[-num_needed:]) and (was_alive or past_grace):
        return "collapsed"
    return None
