"""Optuna pruners. They are pure functions of the study, so that every decision can be repeated."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

from optuna import Study
from optuna.pruners import BasePruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo.policy.pareto import Point, dominates, layers
from hpo.policy.search_config import FORMER_PRUNERS, SearchConfig
from hpo.policy.trial_objectives import point_at
from hpo.policy.user_files import load_from_file
from model.training_report import SMALL

_POWER = 0.3  # how fast the places decrease: 1 is ASHA's own rate, which prunes slow starters (docs/log.md)
_NUM_LEADERS = 5  # complete trials that the former rule compares with


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A comparison of a trial's value with those of its rivals."""

    passed: bool
    cutoff: float | None  # the value of the last rival that continues; None: there are several objectives
    set_by: int | None  # its number, or that of a trial that dominates
    rivals: int  # number of values, the trial's own included where it is one of them
    places: int  # how many of them continue
    step: int  # after which the values were reported


class _Rivals(NamedTuple):
    trials: Sequence[FrozenTrial]
    step: int  # after which their values are compared
    places: int  # how many of them continue


class ComparingPruner(BasePruner):
    """A pruner that compares a trial's value with those of other trials, and explains its decisions."""

    min_delta = 0.0  # a value that is less than this below the cutoff counts as equal
    rule: Literal["asha", "leaders", "dominated"] = "asha"  # the reason of a Decision

    @abstractmethod
    def compares(self, step: int) -> bool:
        """Whether a trial can be pruned after a step."""

    @abstractmethod
    def share(self, step: int) -> float:
        """The expected share of all trials that continue after a step at which it compares."""

    @abstractmethod
    def rivals(self, trials: Sequence[FrozenTrial], trial: FrozenTrial, step: int) -> _Rivals:
        """The trials with which a trial is compared after a step."""

    def compare(
        self, trials: Sequence[FrozenTrial], trial: FrozenTrial, direction: StudyDirection = StudyDirection.MAXIMIZE
    ) -> Comparison | None:
        """Compare a trial's last value with those of other trials; None: it continues without a comparison. Equal
        values all pass, and NaN is the worst. trials: all trials of the study, by number."""
        if trial.last_step is None or not self.compares(trial.last_step):
            return None
        rivals = self.rivals(trials, trial, trial.last_step)
        sign = 1 if direction == StudyDirection.MINIMIZE else -1

        def key(rival: FrozenTrial) -> float:
            value = rival.intermediate_values[rivals.step]
            return math.inf if math.isnan(value) else sign * value

        order = sorted((key(rival), rival.number) for rival in rivals.trials)
        cutoff, set_by = order[min(rivals.places, len(order)) - 1]
        return Comparison(
            passed=key(trial) <= cutoff + self.min_delta and not math.isnan(trial.intermediate_values[rivals.step]),
            cutoff=sign * cutoff,
            set_by=set_by,
            rivals=len(order),
            places=rivals.places,
            step=rivals.step,
        )

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Optuna's interface."""
        comparison = self.compare(study.get_trials(deepcopy=False), trial, study.direction)
        return comparison is not None and not comparison.passed


class AshaPruner(ComparingPruner):
    """Asynchronous successive halving (Li et al. 2020, arXiv 1810.05934), after every step instead of at rungs.

    A trial's value is ranked among the values that trials have had after the same step so far, its own included. Of all
    trials that have reported, 1/`reduction_factor` continue after step `grace_period`, and fewer after each later one.
    The best trial at its step always continues, and so do equally good ones. As more trials report, a trial may be
    pruned that would have continued before.

    Args:
        grace_period: steps before the first comparison, at least 1.
        reduction_factor: one trial in so many continues after them, at least 1.
        epochs: steps of a trial that is never pruned; None: not known. A trial with at most an eighth of them left
            continues, since to prune it would save almost nothing.
        min_delta: a value that is less than this below the cutoff counts as equal.
        is_dead: whether a trial no longer counts as a rival, such as one that diverged.
    """

    def __init__(
        self,
        *,
        grace_period: int = 1,
        reduction_factor: float = 4,
        epochs: int | None = None,
        min_delta: float = 0.0,
        is_dead: Callable[[FrozenTrial], bool] = lambda trial: False,
    ) -> None:
        if grace_period < 1 or reduction_factor < 1:
            raise ValueError(
                f"grace_period={grace_period}, reduction_factor={reduction_factor}: both must be at least 1"
            )
        self._grace, self._reduction, self._epochs = grace_period, reduction_factor, epochs
        self.min_delta, self._is_dead = min_delta, is_dead

    def compares(self, step: int) -> bool:
        return step >= self._grace and not (self._epochs and 8 * (self._epochs - step) <= self._epochs)

    def share(self, step: int) -> float:
        return 1.0 if step < self._grace else 1 / (self._reduction * (step / self._grace) ** _POWER)

    def rivals(self, trials: Sequence[FrozenTrial], trial: FrozenTrial, step: int) -> _Rivals:
        alive = [
            other
            for other in trials
            if other.intermediate_values and (other.number == trial.number or not self._is_dead(other))
        ]
        places = max(1, int(len(alive) * self.share(step)))
        return _Rivals([other for other in alive if step in other.intermediate_values], step, places)


class FrontPruner(AshaPruner):
    """AshaPruner for several objectives: a trial is ranked by non-dominated sorting among what trials had after the
    same step, as in MO-ASHA (Schmucker et al. 2021, arXiv 2106.12639), within a layer by number.

    A trial that is on the front of its step always continues: only one that another trial dominates is pruned.

    Args:
        point: the objectives of a trial after a step, all of them to be maximized.
        options: see AshaPruner.
    """

    rule = "dominated"

    def __init__(self, point: Callable[[FrozenTrial, int], Point], **options: Any) -> None:
        super().__init__(**options)
        self._point = point

    def compare(
        self, trials: Sequence[FrozenTrial], trial: FrozenTrial, direction: StudyDirection = StudyDirection.MAXIMIZE
    ) -> Comparison | None:
        """See ComparingPruner. direction: not used."""
        if trial.last_step is None or not self.compares(trial.last_step):
            return None
        rivals = self.rivals(trials, trial, trial.last_step)
        points = {rival.number: self._point(rival, trial.last_step) for rival in rivals.trials}
        better = [number for number, point in points.items() if dominates(point, points[trial.number])]
        order = [number for layer in layers(points) for number in sorted(layer)] if better else []
        return Comparison(
            passed=not better or trial.number in order[: rivals.places],
            cutoff=None,
            set_by=max(better, key=points.__getitem__, default=None),
            rivals=len(points),
            places=rivals.places,
            step=rivals.step,
        )


class FormerPruner(ComparingPruner):
    """The rules of searches that began before 2026-12, so that they can be continued.

    asha: one in `reduction_factor` trials continues at each rung: step `grace_period`, and that times
    `reduction_factor`, again and again.
    leaders: as soon as five trials are complete, a trial is pruned if it is worse than each of the best five was after
    the same step. Until then one in `reduction_factor` continues, by the values after step `grace_period`.
    """

    def __init__(self, rule: Literal["leaders", "asha"], *, grace_period: int, reduction_factor: int) -> None:
        self.rule, self._is_leaders = rule, rule == "leaders"
        self._grace, self._reduction = grace_period, reduction_factor

    def _rungs(self, step: int) -> list[int]:
        """The rungs up to a step."""
        rungs = [self._grace]
        while rungs[-1] <= step:
            rungs.append(rungs[-1] * self._reduction)
        return rungs[:-1]

    def compares(self, step: int) -> bool:
        return step >= self._grace and (self._is_leaders or step in self._rungs(step))

    def share(self, step: int) -> float:
        return float(self._reduction) ** -(1 if self._is_leaders else len(self._rungs(step)))

    def rivals(self, trials: Sequence[FrozenTrial], trial: FrozenTrial, step: int) -> _Rivals:
        complete = sorted((-t.values[0], t.number) for t in trials if t.state == TrialState.COMPLETE)
        if self._is_leaders and len(complete) >= _NUM_LEADERS:
            return _Rivals([trials[number] for _, number in complete[:_NUM_LEADERS]], step, _NUM_LEADERS)
        compared_step = self._grace if self._is_leaders else step
        reported = [other for other in trials if compared_step in other.intermediate_values]
        return _Rivals(reported, compared_step, max(1, len(reported) // self._reduction))


def create_pruner(search: SearchConfig, is_dead: Callable[[FrozenTrial], bool]) -> BasePruner | None:
    """Make the pruner; None: the search has none. is_dead: whether a trial no longer counts as a rival. Raises
    ConfigError if the user's file fails, or returns something else."""
    if search.pruner == "none":
        return None
    if search.pruner == "asha":
        options: dict[str, Any] = {
            "grace_period": search.grace_epochs,
            "reduction_factor": search.reduction_factor,
            "epochs": search.epochs,
            "is_dead": is_dead,
        }
        if search.is_multi_objective:
            return FrontPruner(partial(point_at, search=search), **options)
        return AshaPruner(min_delta=SMALL[search.objective], **options)
    if search.pruner in FORMER_PRUNERS:
        return FormerPruner(
            "leaders" if search.pruner == "leaders" else "asha",
            grace_period=search.grace_epochs,
            reduction_factor=search.reduction_factor,
        )
    from_file: BasePruner = load_from_file("pruner", search.pruner, BasePruner, "pruner()")
    return from_file
