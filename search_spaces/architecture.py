"""A large space for long searches: the losses, the networks and the optimizer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import optuna

from model.config import TrainConfig

STARTING_POINTS = (
    {  # the slides
        "loss": "l1",
        "adversarial": "sigmoid",
        "adversarial_weight": 1.0,
        "lr_d": 2e-4,
        "patch": 34,
        "blocks": 0,
        "output": "direct",
        "full_resolution_skip": False,
        "upsample": "transposed",
        "norm": "batch",
        "depth": None,
        "width": 64,
        "dropout": 0.5,
        "lr_g": 2e-4,
        "lr_schedule": "constant",
        "beta1": 0.5,
        "beta2": 0.999,
        "average_decay": 0.999,
    },
    {  # a plain denoiser
        "loss": "mse",
        "adversarial": "none",
        "blocks": 1,
        "output": "residual",
        "upsample": "transposed",
        "norm": "batch",
        "depth": 3,
        "width": 16,
        "dropout": 0.0,
        "lr_g": 2e-3,
        "lr_schedule": "cosine",
        "beta1": 0.9,
        "beta2": 0.999,
        "average_decay": 0.999,
    },
)


def suggest(trial: optuna.trial.Trial, base: TrainConfig) -> TrainConfig:
    """Suggest a weight only if there is another loss to weigh it against: Adam ignores the scale of a single loss."""
    config = _losses(trial, base)
    config = _networks(trial, config)
    return replace(
        config,
        lr_g=trial.suggest_float("lr_g", 5e-5, 1e-2, log=True),
        lr_schedule=_choice(trial, "lr_schedule", ["constant", "cosine"]),
        beta1=trial.suggest_float("beta1", 0.0, 0.95),
        beta2=trial.suggest_float("beta2", 0.9, 0.999),
        average_decay=trial.suggest_float("average_decay", 0.99, 0.9995),
    )


def _losses(trial: optuna.trial.Trial, base: TrainConfig) -> TrainConfig:
    config = replace(base, loss=_choice(trial, "loss", ["l1", "ssim", "both", "mse"]))
    if config.loss == "both":
        config = replace(config, ssim_weight=trial.suggest_float("ssim_weight", 10, 1000, log=True))
    config = replace(config, adversarial=_choice(trial, "adversarial", ["sigmoid", "least_squares", "hinge", "none"]))
    if config.adversarial == "none":
        return config
    return replace(
        config,
        adversarial_weight=trial.suggest_float("adversarial_weight", 0.01, 10, log=True),
        lr_d=trial.suggest_float("lr_d", 1e-5, 1e-2, log=True),
        patch=_choice(trial, "patch", [34, 14]),
    )


def _networks(trial: optuna.trial.Trial, base: TrainConfig) -> TrainConfig:
    """With residual blocks, whose first level has the full resolution, or the architecture of the slides (0 blocks)."""
    config = replace(base, blocks=_choice(trial, "blocks", [0, 1, 2]))
    if not config.blocks:
        config = replace(config, full_resolution_skip=_choice(trial, "full_resolution_skip", [False, True]))
    return replace(
        config,
        output=_choice(trial, "output", ["direct", "residual"]),
        upsample=_choice(trial, "upsample", ["transposed", "resize"]),
        norm=_choice(trial, "norm", ["batch", "instance", "none"]),
        depth=_choice(trial, "depth", [None, 4, 3]),
        width=_choice(trial, "width", [16, 32, 64]),
        dropout=_choice(trial, "dropout", [0.0, 0.5]),
    )


def _choice(trial: optuna.trial.Trial, name: str, choices: list[Any]) -> Any:
    return trial.suggest_categorical(name, choices)
