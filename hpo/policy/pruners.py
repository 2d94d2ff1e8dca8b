"""Optuna pruners: which trials go on. Pure functions of the study, so that every decision can be taken again."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from optuna import Study
from optuna.pruners import BasePruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

_POWER = 0.3  # how fast places get fewer: 1 is ASHA's own pace, which stops slow starters (docs/log.md)
_LEADERS = 5  # finished trials that are the measure of the former rule


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """What a trial's value was held against."""

    passed: bool
    cutoff: float  # the value of the last that goes on
    set_by: int  # its number
    rivals: int  # values that were compared, the trial's own among them where it was
    places: int  # how many of them go on
    step: int  # after which the values were reported


class ComparingPruner(BasePruner):
    """One that can say why."""

    @abstractmethod
    def compares(self, step: int) -> bool:
        """Whether a trial can be pruned after a step."""

    @abstractmethod
    def share(self, step: int) -> float:
        """About how many of all trials go on after a step that it compares at."""

    @abstractmethod
    def compare(
        self, trials: Sequence[FrozenTrial], trial: FrozenTrial, direction: StudyDirection = StudyDirection.MAXIMIZE
    ) -> Comparison | None:
        """Hold a trial's last value against those of all trials, by number; None where it goes on without."""

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """As Optuna asks."""
        found = self.compare(study.get_trials(deepcopy=False), trial, study.direction)
        return found is not None and not found.passed


class AshaPruner(ComparingPruner):
    """Asynchronous successive halving (Li et al. 2020, arXiv 1810.05934), asked after every step instead of at rungs.

    A trial's value is ranked among the values that trials have had after the same step so far, its own among them. Of
    all trials that have reported, 1/reduction go on after step `grace`, and fewer after each later one; at least the
    best one goes on, and those that are as good. So a trial that is the best at its step is never pruned. As more
    trials report, a trial may be pruned that would have gone on before.

    Args:
        grace: steps before the first comparison, at least 1.
        reduction: one trial in so many goes on after them, at least 1.
        epochs: steps of a trial that is never pruned. Who has at most an eighth of them left goes on: to prune it would
            save next to nothing. None: not known.
        min_delta: a value that is less than this below the bar is as good.
        is_dead: whether a trial is no rival any more, as one that has diverged.
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
        self._min_delta, self._is_dead = min_delta, is_dead

    def compares(self, step: int) -> bool:
        """See ComparingPruner."""
        return step >= self._grace and not (self._epochs and 8 * (self._epochs - step) <= self._epochs)

    def share(self, step: int) -> float:
        """See ComparingPruner."""
        return 1.0 if step < self._grace else 1 / (self._reduction * (step / self._grace) ** _POWER)

    def compare(
        self, trials: Sequence[FrozenTrial], trial: FrozenTrial, direction: StudyDirection = StudyDirection.MAXIMIZE
    ) -> Comparison | None:
        """See the class."""
        step = trial.last_step
        if step is None or not self.compares(step):
            return None
        alive = [
            other
            for other in trials
            if other.intermediate_values and (other.number == trial.number or not self._is_dead(other))
        ]
        rivals = [other for other in alive if step in other.intermediate_values]
        return _ranked(
            direction, trial, rivals, step, max(1, int(len(alive) * self.share(step))), min_delta=self._min_delta
        )


class FormerPruner(ComparingPruner):
    """The rules that searches began with before 2026-12, for those that are continued.

    asha: at rungs grace, grace x reduction, ... one in `reduction` goes on. leaders: once five trials are complete, who
    is worse than each of the best five was after the same step is pruned; until then one in `reduction` goes on, by
    the value after step `grace`, and is asked again after each later step.
    """

    def __init__(self, rule: Literal["leaders", "asha"], *, grace_period: int, reduction_factor: int) -> None:
        self._rule, self._grace, self._reduction = rule, grace_period, reduction_factor

    def rungs(self, last: int) -> tuple[int, ...]:
        """Steps below the last one after which ASHA compares."""
        found, rung = [], self._grace
        while rung < last:
            found.append(rung)
            rung *= self._reduction
        return tuple(found)

    def compares(self, step: int) -> bool:
        """See ComparingPruner."""
        return step >= self._grace and (self._rule == "leaders" or step in self.rungs(step + 1))

    def share(self, step: int) -> float:
        """See ComparingPruner."""
        times = 1 if self._rule == "leaders" else len(self.rungs(step + 1))
        return float(self._reduction) ** -times

    def compare(
        self, trials: Sequence[FrozenTrial], trial: FrozenTrial, direction: StudyDirection = StudyDirection.MAXIMIZE
    ) -> Comparison | None:
        """See the class."""
        step = trial.last_step
        if step is None or not self.compares(step):
            return None
        complete = sorted((-t.values[0], t.number) for t in trials if t.state == TrialState.COMPLETE)
        if self._rule == "leaders" and len(complete) >= _LEADERS:
            leaders = [trials[number] for _, number in complete[:_LEADERS]]
            return _ranked(direction, trial, leaders, step, _LEADERS)
        at = step if self._rule == "asha" else self._grace
        rivals = [other for other in trials if at in other.intermediate_values]
        return _ranked(direction, trial, rivals, at, max(1, len(rivals) // self._reduction))


def _ranked(
    direction: StudyDirection,
    trial: FrozenTrial,
    rivals: Sequence[FrozenTrial],
    step: int,
    places: int,
    *,
    min_delta: float = 0.0,
) -> Comparison:
    """By the values after a step; of equal ones all pass, and what is not a number is worse than all."""
    sign = 1 if direction == StudyDirection.MINIMIZE else -1

    def key(of: FrozenTrial) -> float:
        value = of.intermediate_values[step]
        return math.inf if math.isnan(value) else sign * value

    order = sorted((key(rival), rival.number) for rival in rivals)
    bar, set_by = order[min(places, len(order)) - 1]
    return Comparison(
        passed=key(trial) <= bar + min_delta and not math.isnan(trial.intermediate_values[step]),
        cutoff=sign * bar,
        set_by=set_by,
        rivals=len(order),
        places=places,
        step=step,
    )
