"""A training in a folder: the last and the best checkpoint, a strip of pictures for each epoch; continues what is
there."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch

from model.checkpoint import CheckpointError
from model.trainer import Trainer

from .common.errors import ConfigError
from .common.files import atomic_replace
from .config import TrainConfig
from .data.device_images import DeviceImages
from .picture_strip import draw_strip
from .run_layout import BEST, LAST, LEARNING_RATES, strip_name
from .training_report import EvalReport, Objective, objective_value

log = logging.getLogger(__name__)
_STRIP_IMAGES = 6


class TrainingRun:
    """Trainer and folder. What an earlier run left in the folder is taken up at its last whole checkpoint.

    Args:
        config: of the training.
        images: on the device where it trains.
        folder: of its checkpoints and strips.
        objective: which checkpoint is the best.
        back_to_best: where the earlier run had other learning rates, go on from its best checkpoint with these.
        notes: JSON-ready, kept in the checkpoints.

    Raises:
        ConfigError: the earlier run had another configuration.
    """

    def __init__(
        self,
        config: TrainConfig,
        images: DeviceImages,
        folder: Path,
        objective: Objective,
        *,
        back_to_best: bool = False,
        **notes: Any,
    ) -> None:
        self.folder, self.objective, self.notes = folder, objective, notes
        self.trainer = Trainer(config, images)
        for path in (folder / LAST, folder / BEST):
            if not path.exists():
                continue
            try:
                self.trainer.load(path, may_differ=LEARNING_RATES if back_to_best and path.name == BEST else ())
            except CheckpointError as error:
                log.warning("%s; trying the next", error)
                continue
            except ConfigError:
                if not back_to_best or path.name == BEST:
                    raise
                continue
            if path.name == LAST and self._is_best():  # and whoever wrote it was killed before he said so
                self._last_is_best()
            break

    @property
    def reports(self) -> list[EvalReport]:
        """All so far, those of earlier runs included."""
        return self.trainer.reports

    def run_epoch(self) -> EvalReport:
        """Train, and have it all on disk before the report is given. Raises OSError."""
        report = self.trainer.run_epoch()
        self.trainer.save(self.folder / LAST, **self.notes)
        if self._is_best():
            self._last_is_best()
        with atomic_replace(self.folder / strip_name(report.epoch)) as part:
            self._strip().save(part)
        return report

    def _is_best(self) -> bool:
        values = [objective_value(r.ssim, r.psnr_db, self.objective) for r in self.reports]
        return values[-1] == max(values)

    def _last_is_best(self) -> None:
        """A second name for the same file: the next epoch writes a new one."""
        part = self.folder / f".{BEST}.{os.getpid()}"
        part.unlink(missing_ok=True)
        os.link(self.folder / LAST, part)
        part.replace(self.folder / BEST)
        part.unlink(missing_ok=True)  # it stays where it is a name of the same file already

    @torch.inference_mode()
    def _strip(self) -> Any:
        images = self.trainer.images
        noisy, clean = images.validation_noisy[:_STRIP_IMAGES], images.validation[:_STRIP_IMAGES]
        denoised = torch.nan_to_num(self.trainer.gan.ema_generator(noisy))
        return draw_strip([t.cpu().numpy() for t in (noisy, denoised, clean)], scale=1)
