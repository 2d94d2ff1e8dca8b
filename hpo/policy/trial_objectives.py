"""The objectives of a trial: from its reports, and from its figures that are known before training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from optuna.trial import FrozenTrial

from hpo.policy.objectives import TRAINED, is_known_before_training, to_maximize
from hpo.policy.pareto import Point
from hpo.policy.search_config import SearchConfig
from hpo.policy.trial_attributes import CONFIG, KNOWN, REPORTS
from model.config import ARCHITECTURE
from model.training_report import objective_value


def needs_figures(search: SearchConfig) -> bool:
    """Whether the figures of a trial's network are measured before its training."""
    return any(map(is_known_before_training, [*search.objectives, *(limit.name for limit in search.limits())]))


def architecture_of(config: Mapping[str, Any]) -> tuple[Any, ...]:
    """What decides latency and size of a network. config: a TrainConfig as a dict."""
    return tuple(config[name] for name in ARCHITECTURE)


def known_figures(config: Mapping[str, Any], trials: list[FrozenTrial]) -> dict[str, float] | None:
    """The figures that an earlier trial with the same architecture had; None: measure them."""
    for trial in trials:
        if KNOWN in trial.user_attrs and architecture_of(trial.user_attrs[CONFIG]) == architecture_of(config):
            known: dict[str, float] = trial.user_attrs[KNOWN]
            return known
    return None


def value_at(trial: FrozenTrial, name: str, epoch: int) -> float | None:
    """An objective in its own unit, after an epoch; None if it is not known yet."""
    if is_known_before_training(name):
        known: float | None = trial.user_attrs.get(KNOWN, {}).get(name)
        return known
    reports = trial.user_attrs[REPORTS]
    trained = next(objective for objective in TRAINED if objective == name)
    return to_maximize(name, objective_value(reports[epoch - 1], trained)) if 0 < epoch <= len(reports) else None


def best_epoch(trial: FrozenTrial) -> int:
    """The epoch of a trial's checkpoint, the last of equally good ones; 0 before the first report."""
    values = trial.intermediate_values
    return max(values, key=lambda epoch: (values[epoch], epoch), default=0)


def objective_values(trial: FrozenTrial, search: SearchConfig) -> dict[str, float] | None:
    """All objectives of a trial in their own units, as its checkpoint has them; None before the first report."""
    values = {name: value_at(trial, name, best_epoch(trial)) for name in search.objectives}
    return None if None in values.values() else {name: float(value or 0.0) for name, value in values.items()}


def point_of(values: Mapping[str, float | None], search: SearchConfig) -> Point:
    """Values in their units as coordinates to be maximized; latency and sizes by their logarithm, since they differ by
    factors. The first trained objective is the first coordinate. NaN and unknown values are minus infinity."""

    def coordinate(name: str) -> float:
        value = values[name]
        if value is None or math.isnan(value):
            return -math.inf
        return -math.log(value) if is_known_before_training(name) else to_maximize(name, value)

    return tuple(map(coordinate, sorted(search.objectives, key=lambda name: name != search.objective)))


def point_at(trial: FrozenTrial, epoch: int, search: SearchConfig) -> Point:
    """The objectives after an epoch, see point_of."""
    return point_of({name: value_at(trial, name, epoch) for name in search.objectives}, search)


def points_by_epoch(trial: FrozenTrial, search: SearchConfig) -> dict[int, Point]:
    """The objectives after each epoch, see point_of. Epochs without finite values are left out."""
    points = {epoch: point_at(trial, epoch, search) for epoch in trial.intermediate_values}
    return {epoch: point for epoch, point in points.items() if all(map(math.isfinite, point))}


def final_point(trial: FrozenTrial, search: SearchConfig) -> Point:
    """The objectives that a trial's checkpoint has, see point_of."""
    return point_at(trial, best_epoch(trial), search)


def violations(trial: FrozenTrial, search: SearchConfig) -> dict[str, float]:
    """The limits that a trial violates, and the value that it has in place of them."""
    values = {limit: value_at(trial, limit.name, best_epoch(trial)) for limit in search.limits()}
    return {str(limit): v for limit, v in values.items() if v is not None and trial.constraints.get(str(limit), 0) > 0}


def excesses(trial: FrozenTrial, search: SearchConfig, *, is_over: bool) -> dict[str, float]:
    """By how much a trial violates each limit, as in Optuna's constraints: at most 0 where it does not.

    Before its end only limits on what is known before training are decided.
    """
    decided = [limit for limit in search.limits() if is_over or is_known_before_training(limit.name)]
    values = {limit: value_at(trial, limit.name, best_epoch(trial)) for limit in decided}
    return {str(limit): limit.excess(value) for limit, value in values.items() if value is not None}
