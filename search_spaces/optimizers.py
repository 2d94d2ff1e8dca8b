"""A small space over the optimizers: both learning rates, Adam's beta1, and the learning-rate schedule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import optuna

from model.config import TrainConfig


def suggest(trial: optuna.trial.Trial, base: TrainConfig) -> TrainConfig:
    """Keep the losses of the base configuration."""
    schedule: Any = trial.suggest_categorical("lr_schedule", ["constant", "cosine"])
    return replace(
        base,
        lr_g=trial.suggest_float("lr_g", 1e-5, 1e-2, log=True),
        lr_d=trial.suggest_float("lr_d", 1e-5, 1e-2, log=True),
        beta1=trial.suggest_float("beta1", 0.0, 0.95),
        lr_schedule=schedule,
    )
