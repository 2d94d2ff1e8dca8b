"""Searches on several objectives in virtual time: the hypervolume of the front over the epochs of all trials."""

from __future__ import annotations

import hashlib
import heapq
import json
import math
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from optuna._hypervolume import compute_hypervolume
from optuna.trial import FrozenTrial, TrialState, create_trial
from replay_figures import load_figures
from replay_table import Curve, load_table

from hpo.policy import report_decision, suggestions
from hpo.policy.objectives import is_known_before_training
from hpo.policy.report_decision import Decision
from hpo.policy.search_config import SearchConfig
from hpo.policy.suggestions import Suggestion
from hpo.policy.trial_attributes import DECISION, REPORT_INDEX, REPORTS
from model.training_report import EvalReport, objective_value
from search_spaces import Space

Vector = tuple[float, ...]  # a figure for each objective, all to be maximized
NOISY = {"psnr": 20.55, "ssim": 0.6815}  # of the noisy images of Fashion-MNIST (gaussian:30)


class Landscape:
    """A table of curves with several objectives, scaled so that each one's useless value is 0 and its best is 1."""

    def __init__(self, path: Path, objectives: tuple[str, ...]) -> None:
        self.table, self.objectives = load_table(path, objectives), objectives
        needed = any(is_known_before_training(name) for name in objectives)
        figures = load_figures(path) if needed else [{} for _ in self.table.curves]
        self._known = {id(curve): known for curve, known in zip(self.table.curves, figures, strict=True)}
        self.digest = hashlib.sha256(f"{self.table.digest} {json.dumps(figures)}".encode()).hexdigest()
        full = [curve for curve in self.table.curves if curve.is_full]
        vectors = [[self.vector(curve, epoch) for epoch in range(1, len(curve.reports) + 1)] for curve in full]
        bests = np.array([np.max(each, axis=0) for each in vectors])
        self._worst = [self._useless(name, column, path) for name, column in zip(objectives, bests.T, strict=True)]
        self._best = bests.max(axis=0)
        self.volume = compute_volume([self.unit(vector) for each in vectors for vector in each])

    @staticmethod
    def _useless(name: str, values: npt.NDArray[np.float64], path: Path) -> float:
        """The value of a network that nobody wants: a tenth slower or larger than any recorded one, or as bad as the
        noisy images; where their value is not known, worse than nine of ten recorded ones."""
        if is_known_before_training(name):
            return float(values.min() - math.log(1.1))
        is_reference = path.name.startswith(("architecture", "default")) and name in NOISY
        return NOISY[name] if is_reference else float(np.quantile(values, 0.1))

    def known(self, curve: Curve) -> Mapping[str, float]:
        """The figures of a configuration that are known before training."""
        return self._known[id(curve)]

    def vector(self, curve: Curve, epoch: int) -> Vector:
        """The objectives after an epoch (from 1), all to be maximized; the negative logarithm of known ones."""
        report, known = curve.reports[epoch - 1], self.known(curve)
        return tuple(
            -math.log(known[name]) if is_known_before_training(name) else objective_value(report, name)
            for name in self.objectives
        )

    def unit(self, vector: Vector) -> Vector:
        """0 for a useless value or a worse one, 1 for the best."""
        values = zip(vector, self._worst, self._best, strict=True)
        return tuple(max(0.0, float((x - worst) / ((best - worst) or 1.0))) for x, worst, best in values)


def compute_volume(points: Sequence[Vector]) -> float:
    """The hypervolume of points to be maximized, over the origin."""
    return float(compute_hypervolume(-np.array(points), np.zeros(len(points[0])), assume_pareto=False))


@lru_cache
def load_landscape(path: Path, objectives: tuple[str, ...]) -> Landscape:
    """Read a table and its figures."""
    return Landscape(path, objectives)


class _Front:
    """The front of all reports so far, and its share of the table's hypervolume over epochs."""

    def __init__(self, landscape: Landscape) -> None:
        self._points: list[Vector] = []
        self._whole = landscape.volume
        self.volumes: list[tuple[int, float]] = []

    def add(self, point: Vector, epochs: int) -> None:
        """Add a report that came after so many epochs."""
        if any(other == point or dominates(other, point) for other in self._points):
            return
        self._points = [other for other in self._points if not dominates(point, other)] + [point]
        volume = compute_volume(self._points) / self._whole
        if volume > (self.volumes[-1][1] if self.volumes else 0.0):
            self.volumes.append((epochs, volume))


class FrontDecider(Protocol):
    """A search method on several objectives."""

    def next(self) -> tuple[int, Mapping[str, Any]] | None:
        """Key and parameters of a trial to run, new or resumed. None: nothing for now."""

    def begin(self, key: int, known: Mapping[str, float]) -> None:
        """A new trial begins; its figures that are known before training."""

    def report(self, key: int, report: EvalReport, vector: Vector, is_last: bool) -> bool:
        """Return whether the trial continues. vector: of the trial's best epoch so far, by the first trained
        objective. is_last: it ends in any case, at full length or diverged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontOutcome:
    """The result of one search."""

    volumes: list[tuple[int, float]]  # after how many epochs the front's share of the table's hypervolume became what
    epochs: int  # of all its trials
    trials: int
    seconds: float  # real time that the method took
    wrong_prunings: int = 0  # trials that were pruned while they were on the front of their epoch


@dataclass(kw_only=True, slots=True)
class _Trial:
    curve: Curve
    epoch: int = 0
    best: int = 1  # epoch with the best first objective

    @property
    def is_dead(self) -> bool:
        """Diverged or collapsed."""
        return not self.curve.is_full and self.epoch == len(self.curve.reports)

    def advance(self) -> None:
        """Train an epoch."""
        self.epoch += 1
        if self.curve.values[self.epoch - 1] > self.curve.values[self.best - 1]:
            self.best = self.epoch


def simulate_front(
    decider: FrontDecider, landscape: Landscape, *, seed: int, workers: int, budget: float, trials: float = math.inf
) -> FrontOutcome:
    """Simulate a search until it spends `budget` epochs, or until `trials` trials have ended.

    A configuration that diverges at some time never counts for the front: the product would drop it.
    """
    began, now, epochs, wrong = time.perf_counter(), 0.0, 0, 0
    jitter = random.Random(seed)  # so that workers report in changing order
    begun: dict[int, _Trial] = {}
    resume = getattr(decider, "resume", lambda: None)
    events: list[tuple[float, int]] = []  # the next report of each running trial
    front = _Front(landscape)
    while epochs < budget:
        while len(events) < workers:
            job = decider.next() if len(begun) < trials else resume()
            if job is None:
                break
            key, params = job
            if key not in begun:
                begun[key] = _Trial(curve=landscape.table.curve(params))
                decider.begin(key, landscape.known(begun[key].curve))
            heapq.heappush(events, (now + jitter.uniform(0.9, 1.1), key))
        if not events:
            break
        now, key = heapq.heappop(events)
        epochs, trial = epochs + 1, begun[key]
        trial.advance()
        if trial.curve.is_full:
            front.add(landscape.unit(landscape.vector(trial.curve, trial.epoch)), epochs)
        is_last = trial.epoch == len(trial.curve.reports)
        told = landscape.vector(trial.curve, trial.best)
        if decider.report(key, trial.curve.reports[trial.epoch - 1], told, is_last) and not is_last:
            heapq.heappush(events, (now + jitter.uniform(0.9, 1.1), key))
        elif not is_last and not hasattr(decider, "resume"):  # a paused trial is not pruned
            wrong += _is_on_front(trial, begun.values(), landscape)
    return FrontOutcome(
        volumes=front.volumes,
        epochs=epochs,
        trials=len(begun),
        seconds=time.perf_counter() - began,
        wrong_prunings=wrong,
    )


def _is_on_front(trial: _Trial, trials: Iterable[_Trial], landscape: Landscape) -> bool:
    """Whether no living trial was better at its epoch, neither by that epoch's figures nor by those of the best one."""
    rivals = [other.curve for other in trials if other.epoch >= trial.epoch and not other.is_dead]

    def vectors(curve: Curve) -> list[Vector]:
        best = max(range(trial.epoch), key=lambda index: curve.values[index]) + 1
        return [landscape.vector(curve, trial.epoch), landscape.vector(curve, best)]

    own = vectors(trial.curve)
    return not any(dominates(a, b) for curve in rivals for a, b in zip(vectors(curve), own, strict=True))


def dominates(a: Vector, b: Vector) -> bool:
    """Whether a is at least as good as b everywhere, and better somewhere; both are to be maximized."""
    return a != b and all(x >= y for x, y in zip(a, b, strict=True))


def volume_at(outcome: FrontOutcome, epochs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The share of the hypervolume after so many epochs; after the search's end, that at its end."""
    steps = np.array([0, *(epoch for epoch, _ in outcome.volumes)])
    values = np.array([0.0, *(volume for _, volume in outcome.volumes)])
    return values[np.searchsorted(steps, epochs, side="right") - 1]


class OursFront:
    """Decisions over trials in memory, like the product's; another `suggest` or `judge` makes a variant to compare."""

    def __init__(
        self,
        space: Space,
        search: SearchConfig,
        *,
        suggest: Callable[..., Suggestion | None],
        judge: Callable[..., Decision],
    ) -> None:
        self.trials: list[FrozenTrial] = []
        self._space, self._search, self._suggest, self._judge = space, search, suggest, judge
        self._num_reports = 0

    def next(self) -> tuple[int, Mapping[str, Any]] | None:
        """Like SearchController.next_trial and Record.add."""
        suggestion = self._suggest(self.trials, self._space, self._search)
        if suggestion is None:
            return None
        trial = create_trial(
            state=TrialState.RUNNING,
            params=dict(suggestion.params),
            distributions=dict(suggestion.distributions),
            user_attrs=suggestion.user_attrs(self._num_reports),
        )
        trial.number = len(self.trials)
        self.trials.append(trial)
        return trial.number, trial.params

    def begin(self, key: int, known: Mapping[str, float]) -> None:
        self.trials[key].user_attrs["known"] = dict(known)

    def report(self, key: int, report: EvalReport, vector: Vector, is_last: bool) -> bool:
        """Like Record.append_report; `judge` finds out by itself whether the report is the last."""
        trial = self.trials[key]
        trial.user_attrs[REPORTS].append({**report.as_dict(), REPORT_INDEX: self._num_reports})
        trial.intermediate_values[report.epoch] = objective_value(report, self._search.objective)
        self._num_reports += 1
        decision = self._judge(self.trials, key, report.epoch, self._search)
        if decision.action == "continue":
            return True
        trial.user_attrs[DECISION] = asdict(decision)
        trial.state = TrialState.COMPLETE if decision.action == "complete" else TrialState.PRUNED
        trial.values, trial.datetime_complete = [decision.value], trial.datetime_start
        return False


def ours_front(space: Space, search: SearchConfig, **changed: Any) -> OursFront:
    """Make `OursFront` with some settings of SearchConfig changed."""
    search = replace(search, **changed)
    return OursFront(space, search, suggest=suggestions.suggest, judge=report_decision.decide_pruning)
