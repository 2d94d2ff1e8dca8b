"""Trains one pix2pix denoiser epoch by epoch, with an EvalReport after each, and continues exactly from checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from model.gan import MEAN_NORMS, Gan
from model.generator import Generator

from . import metrics
from .common.errors import ConfigError
from .config import TrainConfig
from .data.device_images import DeviceImages
from .training_report import LOSS_NAMES, EvalReport

SEARCH_VALIDATION_IMAGES = 1_000  # in trials; finalists are measured on all of them
_EVAL_BATCH = 250


class Trainer:
    """One training, an epoch at a time.

    An epoch e is a function of the state before it and of (config.seed, e) only. A training that continues from a
    checkpoint is therefore identical to an uninterrupted one, bit for bit on a CPU with the same number of threads.

    Raises:
        ConfigError: a batch is larger than the training set.
    """

    def __init__(self, config: TrainConfig, images: DeviceImages) -> None:
        self.config, self.images = config, images
        self.reports: list[EvalReport] = []
        if config.batch_size > len(images.train):
            raise ConfigError(f"batch_size={config.batch_size}: above the {len(images.train)} training images")
        self._steps_per_epoch = (config.images_per_epoch or len(images.train)) // config.batch_size
        noisy, clean = images.validation_noisy, images.validation
        self._noisy_psnr_db = metrics.mean_psnr_db(noisy, noisy, clean).item()

        channels, size, _ = images.shape
        self.gan = Gan(config, channels=channels, image_size=size, device=images.device)

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return len(self.reports)

    def run_epoch(self) -> EvalReport:
        """Train for one epoch, validate, and return the report."""
        started = time.perf_counter()
        train_losses = self._train_epoch()
        trained = time.perf_counter()
        report = EvalReport(
            epoch=self.epoch + 1,
            images=(self.epoch + 1) * self._steps_per_epoch * self.config.batch_size,
            **self._evaluate(),
            **train_losses,
            seconds=trained - started,
            eval_seconds=time.perf_counter() - trained,
        )
        self.reports.append(report)
        return report

    def _train_epoch(self) -> dict[str, float]:
        """Update the networks on every batch of the epoch; returns the mean losses by name."""
        self.gan.generator.train()
        self.gan.discriminator.train()
        totals = torch.zeros(len(LOSS_NAMES), device=self.images.device)
        with self._seeded_epoch() as generator:
            for step, rows in enumerate(self._batches(), start=self.epoch * self._steps_per_epoch):
                noisy, clean = self.images.batch(rows, generator)
                self._set_learning_rates(step)
                totals += self.gan.step(noisy, clean)
                self.gan.update_ema(step)
        means = (totals / self._steps_per_epoch).tolist()  # the only synchronisation with the device in an epoch
        return dict(zip(LOSS_NAMES, means, strict=True))

    def _batches(self) -> Iterator[torch.Tensor]:
        """Yield the indices (batch_size,) of each batch, from an endless sequence of shuffles of the images."""
        size, count = self.config.batch_size, len(self.images.train)
        first = self.epoch * self._steps_per_epoch * size
        shuffles: dict[int, torch.Tensor] = {}
        for start in range(first, first + self._steps_per_epoch * size, size):
            rows = []
            for shuffle in range(start // count, (start + size - 1) // count + 1):
                if shuffle not in shuffles:
                    seed = derive_seed(self.config.seed, shuffle, "shuffle")
                    order = np.random.Generator(np.random.Philox(key=seed)).permutation(count)
                    shuffles[shuffle] = torch.from_numpy(order).to(self.images.device)
                offset = shuffle * count
                rows.append(shuffles[shuffle][max(start - offset, 0) : start + size - offset])
            yield torch.cat(rows)

    def _evaluate(self) -> dict[str, float]:
        """Validate the EMA generator, which is what an export contains."""
        for ema_buffer, buffer in zip(self.gan.ema_generator.buffers(), self.gan.generator.buffers(), strict=True):
            ema_buffer.copy_(buffer)
        return {**validate(self.gan.ema_generator, self.images), "noisy_psnr_db": self._noisy_psnr_db}

    def _set_learning_rates(self, step: int) -> None:
        """Apply the schedule; step: counted from the start of the training."""
        progress = step / (self.config.epochs * self._steps_per_epoch)
        is_cosine = self.config.lr_schedule == "cosine"
        self.gan.set_learning_rates(0.5 * (1 + math.cos(math.pi * min(progress, 1.0))) if is_cosine else 1.0)

    @contextmanager
    def _seeded_epoch(self) -> Iterator[torch.Generator]:
        """Seed torch's global generators, which dropout uses, and yield a seeded generator for the noise.

        The state of the global generators is restored afterwards.
        """
        seed = derive_seed(self.config.seed, self.epoch, "epoch")
        with torch.random.fork_rng(devices=[self.images.device] if self.images.device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield torch.Generator(self.images.device).manual_seed(seed + 1)

    # --- exact continuation ----------------------------------------------------------------------------------------

    def save(self, path: Path, **notes: Any) -> None:
        """Write all that the next epoch depends on, the reports so far and JSON-ready notes. Raises OSError."""
        state = {
            "config": self.config.as_dict(),
            "reports": [report.as_dict() for report in self.reports],
            "notes": notes,
        }
        save_checkpoint(path, self.gan.tensors(), state)

    def load(self, path: Path, *, may_differ: Collection[str] = ()) -> None:
        """Restore the state of a checkpoint, whose configuration may have other values of the settings `may_differ`.

        Raises:
            CheckpointError: the checkpoint is missing or damaged.
            ConfigError: it belongs to another configuration.
        """
        tensors, state = load_checkpoint(path)
        # Weights of unused losses are None in both; settings that are newer than the checkpoint have their defaults.
        saved_config, reports = parse_state(path, state)
        saved, current = saved_config.as_dict(), self.config.as_dict()
        names = [name for name in current if saved[name] != current[name] and name not in may_differ]
        if names:
            differences = ", ".join(f"{name} was {saved[name]}, is {current[name]}" for name in names)
            raise ConfigError(f"{path}: made by another configuration ({differences})")
        own = self.gan.tensors()
        tensors = {**{name: own[name] for name in MEAN_NORMS}, **tensors}  # old checkpoints lack the mean norms
        if _shapes(own) != _shapes(tensors):
            raise CheckpointError(f"{path}: its networks have other shapes than this configuration's")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(tensors[name])
        self.reports = reports


def validate(generator: torch.nn.Module, images: DeviceImages) -> dict[str, float]:
    """Measure a generator in eval mode on the validation images, in float32.

    Returns:
        The means `ssim`, `psnr_db`, `l1` and `haarpsi`, and `output_std`, the standard deviation over images.
    """
    return validate_images(generator, images)[0]


@torch.inference_mode()
def validate_images(
    generator: torch.nn.Module, images: DeviceImages
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """What `validate` returns, and each metric's value for each image, (N,), whose mean is that metric."""
    clean = images.validation
    denoised = torch.cat([generator(noisy) for noisy in torch.split(images.validation_noisy, _EVAL_BATCH)])
    pairs = list(zip(torch.split(denoised, _EVAL_BATCH), torch.split(clean, _EVAL_BATCH), strict=True))
    each = {
        "ssim": torch.cat([metrics.ssim(*pair) for pair in pairs]),
        "l1": metrics.l1(denoised, clean),
        "haarpsi": torch.cat([metrics.haarpsi(*pair) for pair in pairs]),
    }
    psnr_db = metrics.mean_psnr_db(denoised, images.validation_noisy, clean)
    values = {**each, "psnr_db": psnr_db, "output_std": denoised.std(dim=0)}
    means = torch.stack([value.mean() for value in values.values()]).tolist()  # one synchronisation with the device
    each["psnr_db"] = metrics.shares_of_psnr_db(denoised, images.validation_noisy, clean)
    return dict(zip(values, means, strict=True)), each


def derive_seed(seed: int, number: int, purpose: str) -> int:
    """Derive an independent 63-bit seed for each (seed, number, purpose)."""
    words = np.random.SeedSequence([seed, number, *purpose.encode()]).generate_state(2)
    return int(words[0]) << 31 | int(words[1]) >> 1


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def parse_state(path: Path, state: Mapping[str, Any]) -> tuple[TrainConfig, list[EvalReport]]:
    """Parse configuration and reports of a checkpoint's state. Raises CheckpointError, ConfigError."""
    try:
        reports = [EvalReport.from_dict(report) for report in state["reports"]]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path}: not a checkpoint of this program (its reports: {error!r})") from error
    if [report.epoch for report in reports] != [*range(1, len(reports) + 1)]:
        raise CheckpointError(f"{path}: not a checkpoint of this program (its reports must have epochs 1, 2, 3, ...)")
    return TrainConfig.from_dict(state.get("config", {})), reports


def load_generator(path: Path, *, channels: int, image_size: int) -> tuple[Generator, dict[str, Any]]:
    """Return the EMA generator of a checkpoint, in eval mode on the CPU, and the checkpoint's state.

    Raises:
        CheckpointError: it is missing, damaged or inconsistent.
    """
    tensors, state = load_checkpoint(path)
    config, _ = parse_state(path, state)
    prefix = "average."
    weights = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    with torch.device("meta"):  # needs no memory, whatever size the checkpoint claims
        planned = Generator(config, channels=channels, image_size=image_size).state_dict()
    if _shapes(planned) != _shapes(weights):
        raise CheckpointError(f"{path}: its generator does not fit its own configuration (other tensors, or shapes)")
    generator = Generator(config, channels=channels, image_size=image_size)
    try:
        generator.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its generator does not fit its own configuration ({error})") from error
    return generator.eval(), state
