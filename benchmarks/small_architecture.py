"""The space `architecture` with networks a quarter as wide: a table of its learning curves takes minutes, not hours."""

from __future__ import annotations

from typing import Any

import optuna

from model.config import TrainConfig
from search_spaces import architecture

WIDTHS = {16: 4, 32: 8, 64: 16}
STARTING_POINTS = tuple({**point, "width": WIDTHS[point["width"]]} for point in architecture.STARTING_POINTS)


class _Narrow:
    """An Optuna trial that is asked for other widths."""

    def __init__(self, trial: optuna.Trial) -> None:
        self._trial = trial

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trial, name)

    def suggest_categorical(self, name: str, choices: list[Any]) -> Any:
        return self._trial.suggest_categorical(name, [WIDTHS[c] for c in choices] if name == "width" else choices)


def suggest(trial: optuna.Trial, base: TrainConfig) -> TrainConfig:
    return architecture.suggest(_Narrow(trial), base)
