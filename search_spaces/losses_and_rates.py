"""The default space: the reconstruction loss, its weights, and the learning rates of both networks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import optuna

from model.config import TrainConfig

# The two settings of the slides compete like any other.
STARTING_POINTS = (
    {"loss": "l1", "l1_weight": 100.0, "lr_g": 2e-4, "lr_d": 2e-4},
    {"loss": "ssim", "ssim_weight": 100.0, "lr_g": 2e-4, "lr_d": 2e-4},
)


def suggest(trial: optuna.trial.Trial, base: TrainConfig) -> TrainConfig:
    """Suggest a weight only if its loss takes part, so that the sampler never learns from unused ones."""
    loss: Any = trial.suggest_categorical("loss", ["l1", "ssim", "both"])
    config = replace(base, loss=loss)
    if config.loss in ("l1", "both"):
        config = replace(config, l1_weight=trial.suggest_float("l1_weight", 10, 1000, log=True))
    if config.loss in ("ssim", "both"):
        config = replace(config, ssim_weight=trial.suggest_float("ssim_weight", 10, 1000, log=True))
    return replace(
        config,
        lr_g=trial.suggest_float("lr_g", 5e-5, 1e-2, log=True),  # the slides use 2e-4; nothing below it was ever good
        lr_d=trial.suggest_float("lr_d", 1e-5, 1e-2, log=True),
    )
