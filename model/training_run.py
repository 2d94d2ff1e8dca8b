"""A training in a folder: the last and the best checkpoint, and a picture strip for each epoch. It resumes."""

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
from .training_files import BEST, LAST, LEARNING_RATES, strip_name
from .training_report import EvalReport, Objective, objective_value

log = logging.getLogger(__name__)
_STRIP_IMAGES = 6


class TrainingRun:
    """A trainer with a folder; resumes from the last undamaged checkpoint in it.

    Args:
        folder: of the checkpoints and strips.
        objective: decides which checkpoint is the best.
        back_to_best: if the earlier run had other learning rates, continue from its best checkpoint with these.
        notes: JSON-ready, stored in the checkpoints.

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
        self._resume(back_to_best)

    def _resume(self, back_to_best: bool) -> None:
        """Load the first usable checkpoint, if there is one."""
        for path in (self.folder / LAST, self.folder / BEST):
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
            if path.name == LAST and self._is_best():  # the earlier run was killed before it linked it
                self._link_best()
            break

    @property
    def reports(self) -> list[EvalReport]:
        """All reports so far, including those of earlier runs."""
        return self.trainer.reports

    def run_epoch(self) -> EvalReport:
        """Train one epoch, write checkpoint and strip, and return the report. Raises OSError."""
        report = self.trainer.run_epoch()
        self.trainer.save(self.folder / LAST, **self.notes)
        if self._is_best():
            self._link_best()
        with atomic_replace(self.folder / strip_name(report.epoch)) as part:
            self._strip().save(part)
        return report

    def _is_best(self) -> bool:
        values = [objective_value(r, self.objective) for r in self.reports]
        return values[-1] == max(values)

    def _link_best(self) -> None:
        """Hard-link the last checkpoint as the best one; the next epoch replaces only the name of the last one."""
        part = self.folder / f".{BEST}.{os.getpid()}"
        part.unlink(missing_ok=True)
        os.link(self.folder / LAST, part)
        part.replace(self.folder / BEST)
        part.unlink(missing_ok=True)  # rename does nothing between two links of one file

    @torch.inference_mode()
    def _strip(self) -> Any:
        images = self.trainer.images
        noisy, clean = images.validation_noisy[:_STRIP_IMAGES], images.validation[:_STRIP_IMAGES]
        denoised = torch.nan_to_num(self.trainer.gan.ema_generator(noisy))
        return draw_strip([t.cpu().numpy() for t in (noisy, denoised, clean)], scale=1)
