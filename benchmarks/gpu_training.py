"""Trainings for benchmarks/gpu_check.py: images from a seed, the product's step and plain pix2pix, and their speed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from plain_pix2pix import NOISE_STD, PlainPix2Pix, loader

from model.config import TrainConfig
from model.gan import Gan
from model.training_report import LOSS_NAMES

SCRIPT = Path(__file__).with_name("gpu_check.py")
SIDE, PADDING = 32, 2
CPU = torch.device("cpu")
NO_BFLOAT16, NOT_FINITE, TOO_FAR = "this GPU does not multiply it", "a loss is not finite", "too far apart"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is measured, and how large it is."""

    widths: tuple[int, ...]
    batches: tuple[int, ...]
    width: int  # of parts that measure one size
    batch: int
    side_by_side: int  # trainings at the same time
    images: int
    matrix: int  # rows of the matrix product that measures the peak
    measurements: float  # that share the time of the whole check
    epoch: int  # images in an epoch of the search
    compiler: str


ON_GPU = Sizes(
    widths=(16, 32, 64), batches=(64, 256), width=32, batch=64, side_by_side=8, images=8192, matrix=8192,
    measurements=80, epoch=24_000, compiler="inductor",
)  # fmt: skip
ON_CPU = Sizes(
    widths=(2, 4), batches=(16,), width=4, batch=16, side_by_side=2, images=256, matrix=256,
    measurements=4000, epoch=512, compiler="aot_eager",  # inductor compiles C++ for a minute or more
)  # fmt: skip

# The largest difference to the CPU's float32, as a share of the largest value; of losses, each of its own. The CPU
# computes in another way: contiguous memory, and ordinary convolutions where the trainer multiplies matrices. On a CPU
# the difference is 3e-6 in float32, and at most half of these tolerances in emulated bfloat16. TF32, with three bits
# more than bfloat16, would exceed the first line.
TOLERANCES = {
    "float32": {"output": 2e-4, "losses": 5e-5, "metric": 5e-5, "gradients": 1e-3, "after steps": 1e-3},
    "bfloat16": {"output": 0.03, "losses": 5e-3, "metric": 0.01, "gradients": 0.1, "after steps": 0.02},
}


@dataclass(frozen=True, kw_only=True)
class Check:
    """The settings of every part."""

    device: torch.device
    sizes: Sizes
    seconds: float  # of one measurement
    tolerance: float  # a factor on all tolerances
    arguments: tuple[str, ...] = ()  # of the command line, for the processes of this check

    def config(self, width: int | None = None, batch: int | None = None, **settings: Any) -> TrainConfig:
        """The slides' networks and losses, in the precision that `auto` would choose on a GPU."""
        precision = "float32" if self.device == CPU or self.lacks_support("bfloat16") else "bfloat16"
        base = {"width": width or self.sizes.width, "batch_size": batch or self.sizes.batch, "precision": precision}
        return TrainConfig(**{**base, **settings})

    def start_training(self, config: TrainConfig, *, capturable: bool = False) -> tuple[Training, ImageBatches]:
        """A training, and its batches."""
        training = Training(config, self.device, capturable=capturable)
        return training, ImageBatches(blobs(self.sizes.images), config.batch_size, self.device)

    def lacks_support(self, precision: str) -> bool:
        """Whether the GPU does not multiply bfloat16 natively. On CPUs an emulation is enough for comparisons."""
        on_gpu = self.device.type == "cuda"
        return precision == "bfloat16" and on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False)

    @property
    def size(self) -> str:
        """The size of parts that measure one, for a row."""
        return f"width {self.sizes.width}, batch {self.sizes.batch}"


# --- images and trainings -------------------------------------------------------------------------------------------


def blobs(count: int, seed: int = 0) -> np.ndarray:
    """Smooth random images, uint8 (N, 1, 32, 32): six Gaussian bumps each, on black, with a black edge."""
    random, side = np.random.default_rng(seed), SIDE - 2 * PADDING
    centre, spread = random.uniform(0, side, (2, count, 6, 1)), random.uniform(2, 7, (2, count, 6, 1))
    rows, columns = np.exp(-0.5 * ((np.arange(side) - centre) / spread) ** 2)
    images = np.einsum("nk,nky,nkx->nyx", random.uniform(40, 200, (count, 6)), rows, columns)
    edge = (PADDING, PADDING)
    return np.pad(images.clip(0, 255).astype(np.uint8), ((0, 0), edge, edge))[:, None]


class ImageBatches:
    """Batches on a device in one shuffled order, with noise that is drawn there, as in model.data.device_images."""

    def __init__(self, images: np.ndarray, batch: int, device: torch.device) -> None:
        self.images, self.generator = torch.from_numpy(images).to(device), torch.Generator(device).manual_seed(1)
        order = torch.from_numpy(np.random.default_rng(2).permutation(len(images))).to(device)
        self._batches, self._next = torch.split(order, batch)[: len(images) // batch], 0

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Noisy and clean, float32 (N, 1, 32, 32) in [-1, 1]."""
        rows = self._batches[self._next % len(self._batches)]
        self._next += 1
        clean = self.images[rows].float().div_(127.5).sub_(1)
        normal = torch.empty_like(clean).normal_(generator=self.generator)
        return clean.add(normal, alpha=NOISE_STD * 2 / 255).clamp(-1, 1), clean


class Training:
    """The product's networks and optimisers, without reports, checkpoints and schedule."""

    def __init__(self, config: TrainConfig, device: torch.device, *, capturable: bool = False) -> None:
        self.gan = Gan(config, channels=1, image_size=SIDE, device=device, capturable=capturable)
        self.steps = 0
        self.totals = torch.zeros(len(LOSS_NAMES), device=device)

    def next_step(self, shown: ImageBatches) -> None:
        """One step on the next batch."""
        self.totals += self.step(*shown.batch())

    def step(self, noisy: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        """One update of both networks and of the EMA; returns the five losses."""
        losses = self.gan.step(noisy, clean)
        self.gan.update_ema(self.steps)
        self.steps += 1
        return losses


class PlainTraining:
    """Plain pix2pix, batch after batch."""

    def __init__(self, config: TrainConfig, images: np.ndarray, device: torch.device) -> None:
        self._plain = PlainPix2Pix(config, channels=1, image_size=SIDE, device=device)
        self._loader = loader(images.astype(np.float32) / 127.5 - 1, config.batch_size)
        self._batches = iter(self._loader)
        self.last = (0.0, 0.0)

    def next_step(self) -> None:
        """One step on the next batch."""
        batch = next(self._batches, None)
        if batch is None:
            self._batches = iter(self._loader)
            batch = next(self._batches)
        self.last = self._plain.step(*batch)


# --- speed ----------------------------------------------------------------------------------------------------------

_ROUNDS, WARM_UP_STEPS = 5, 5


def steps_per_second(
    works: Mapping[str, Callable[[], object]], device: torch.device, seconds: float
) -> dict[str, list[float]]:
    """Measure each one, round by round.

    They take turns: the speed of a machine varies, and ratios within a round do not.

    Args:
        works: a step of each training, by name.
        device: where they run.
        seconds: for each of them.
    """
    counts, measured = {}, {name: [0.0] * _ROUNDS for name in works}
    for name, work in works.items():
        time_steps(work, WARM_UP_STEPS, device)
        counts[name] = max(1, round(seconds / _ROUNDS * WARM_UP_STEPS / time_steps(work, WARM_UP_STEPS, device)))
    for turn in range(_ROUNDS):
        for name, work in works.items():
            measured[name][turn] = counts[name] / time_steps(work, counts[name], device)
    return measured


def time_steps(work: Callable[[], object], count: int, device: torch.device) -> float:
    synchronize(device)
    began = time.perf_counter()
    for _ in range(count):
        work()
    synchronize(device)
    return time.perf_counter() - began


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median ratio over rounds."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
