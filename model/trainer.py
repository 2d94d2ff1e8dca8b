"""The training of one pix2pix denoiser: one epoch in, one EvalReport out; exact continuation."""

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

SEARCH_VALIDATION_IMAGES = 1_000  # that trials look at; finalists are measured on all
_EVAL_BATCH = 250


class Trainer:
    """One training, an epoch at a time.

    What epoch e does is a function of the state before it and (config.seed, e) alone, so that a training continued
    from a checkpoint is the undisturbed one, bit for bit on a CPU with as many threads. Raises ConfigError for a batch
    larger than the training set.
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
        """Epochs done."""
        return len(self.reports)

    def run_epoch(self) -> EvalReport:
        """Train for one epoch, look at the validation images, report."""
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
        self.gan.generator.train()
        self.gan.discriminator.train()
        totals = torch.zeros(len(LOSS_NAMES), device=self.images.device)
        with self._random_state_of_epoch() as draw:
            for step, rows in enumerate(self._batches(), start=self.epoch * self._steps_per_epoch):
                noisy, clean = self.images.batch(rows, draw)
                self._set_learning_rates(step)
                totals += self.gan.step(noisy, clean)
                self.gan.update_ema(step)
        means = (totals / self._steps_per_epoch).tolist()  # the epoch's only wait for the device
        return dict(zip(LOSS_NAMES, means, strict=True))

    def _batches(self) -> Iterator[torch.Tensor]:
        """This epoch's stretch of an endless row of shuffles of the training images, as their indices (batch,)."""
        size, count = self.config.batch_size, len(self.images.train)
        first = self.epoch * self._steps_per_epoch * size
        shuffles: dict[int, torch.Tensor] = {}
        for start in range(first, first + self._steps_per_epoch * size, size):
            rows = []
            for shuffle in range(start // count, (start + size - 1) // count + 1):
                if shuffle not in shuffles:
                    seed = _mix(self.config.seed, shuffle, "shuffle")
                    order = np.random.Generator(np.random.Philox(key=seed)).permutation(count)
                    shuffles[shuffle] = torch.from_numpy(order).to(self.images.device)
                offset = shuffle * count
                rows.append(shuffles[shuffle][max(start - offset, 0) : start + size - offset])
            yield torch.cat(rows)

    def _evaluate(self) -> dict[str, float]:
        """Of the moving average: what would be exported now."""
        for ours, theirs in zip(self.gan.ema_generator.buffers(), self.gan.generator.buffers(), strict=True):
            ours.copy_(theirs)
        return {**validate(self.gan.ema_generator, self.images), "noisy_psnr_db": self._noisy_psnr_db}

    def _set_learning_rates(self, step: int) -> None:
        if self.config.lr_schedule == "cosine":
            progress = step / (self.config.epochs * self._steps_per_epoch)
            factor = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        else:
            factor = 1.0
        self.gan.set_learning_rates(factor)

    @contextmanager
    def _random_state_of_epoch(self) -> Iterator[torch.Generator]:
        """Dropout draws from torch's global generators, noise from the one given; both start from the epoch's seed,
        and the global ones are given back as they were."""
        seed = _mix(self.config.seed, self.epoch, "epoch")
        with torch.random.fork_rng(devices=[self.images.device] if self.images.device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield torch.Generator(self.images.device).manual_seed(seed + 1)

    # --- exact continuation ----------------------------------------------------------------------------------------

    def save(self, path: Path, **notes: Any) -> None:
        """Everything that the next epoch depends on, the reports so far and JSON-ready notes. Raises OSError."""
        state = {
            "config": self.config.as_dict(),
            "reports": [report.as_dict() for report in self.reports],
            "notes": notes,
        }
        save_checkpoint(path, self.gan.tensors(), state)

    def load(self, path: Path, *, may_differ: Collection[str] = ()) -> None:
        """Go on where the checkpoint stood.

        Args:
            path: of the checkpoint.
            may_differ: settings of its configuration that need not be this one's.

        Raises:
            CheckpointError: it is damaged.
            ConfigError: it is of another configuration.
        """
        tensors, state = load_checkpoint(path)
        # A weight whose loss takes no part is None in both; a setting that came after the checkpoint has its default.
        config, reports = _told(path, state)
        was, now = config.as_dict(), self.config.as_dict()
        names = [name for name in now if was[name] != now[name] and name not in may_differ]
        if names:
            differences = ", ".join(f"{name} was {was[name]}, is {now[name]}" for name in names)
            raise ConfigError(f"{path}: made by another configuration ({differences})")
        mine = self.gan.tensors()
        tensors = {**{name: mine[name] for name in MEAN_NORMS}, **tensors}  # checkpoints made before them begin anew
        if {name: t.shape for name, t in mine.items()} != {name: t.shape for name, t in tensors.items()}:
            raise CheckpointError(f"{path}: its networks have other shapes than this configuration's")
        with torch.no_grad():
            for name, tensor in mine.items():
                tensor.copy_(tensors[name])
        self.reports = reports


@torch.inference_mode()
def validate(generator: Generator, images: DeviceImages) -> dict[str, float]:
    """SSIM, PSNR, L1 and variation of what a generator in eval mode makes of the validation images, in float32."""
    clean = images.validation
    denoised = torch.cat([generator(noisy) for noisy in torch.split(images.validation_noisy, _EVAL_BATCH)])
    pairs = zip(torch.split(denoised, _EVAL_BATCH), torch.split(clean, _EVAL_BATCH), strict=True)
    ssim = torch.cat([metrics.ssim(*pair) for pair in pairs])
    psnr_db = metrics.mean_psnr_db(denoised, images.validation_noisy, clean)
    measured = torch.stack(
        [m.mean() for m in (ssim, psnr_db, metrics.l1(denoised, clean), denoised.std(dim=0))]
    ).tolist()
    return dict(zip(("ssim", "psnr_db", "l1", "output_std"), measured, strict=True))


def _mix(seed: int, number: int, purpose: str) -> int:
    """A seed of its own for each (seed, number, purpose)."""
    words = np.random.SeedSequence([seed, number, *purpose.encode()]).generate_state(2)
    return int(words[0]) << 31 | int(words[1]) >> 1


def _network_weights(tensors: Mapping[str, torch.Tensor], network: str) -> dict[str, torch.Tensor]:
    """One network's state_dict out of a checkpoint's tensors: generator, discriminator or average."""
    prefix = f"{network}."
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _told(path: Path, state: Mapping[str, Any]) -> tuple[TrainConfig, list[EvalReport]]:
    """What a checkpoint's state says. Raises CheckpointError, ConfigError."""
    try:
        reports = [EvalReport.from_dict(report) for report in state["reports"]]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path}: not ours (its reports: {error!r})") from error
    if [report.epoch for report in reports] != [*range(1, len(reports) + 1)]:
        raise CheckpointError(f"{path}: not ours (its reports are not of the epochs 1, 2, 3, ...)")
    return TrainConfig.from_dict(state.get("config", {})), reports


def load_generator(path: Path, *, channels: int, image_size: int) -> tuple[Generator, dict[str, Any]]:
    """The moving average of a checkpoint, in eval mode on the CPU, and the checkpoint's state.

    Raises CheckpointError.
    """
    tensors, state = load_checkpoint(path)
    config, _ = _told(path, state)
    weights = _network_weights(tensors, "average")
    with torch.device("meta"):  # costs no memory, however large it says that it is
        planned = Generator.from_config(config, channels=channels, image_size=image_size).state_dict()
    if {name: t.shape for name, t in planned.items()} != {name: t.shape for name, t in weights.items()}:
        raise CheckpointError(f"{path}: its generator does not fit its own configuration (other tensors, or shapes)")
    generator = Generator.from_config(config, channels=channels, image_size=image_size)
    try:
        generator.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its generator does not fit its own configuration ({error})") from error
    return generator.eval(), state
