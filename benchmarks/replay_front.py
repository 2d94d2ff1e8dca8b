"""Searches on several objectives in virtual time: the hypervolume of the front over the epochs of all trials."""

from __future__ import annotations

import hashlib
import heapq
import json
import math
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from optuna._hypervolume import compute_hypervolume
from optuna.trial import TrialState
from replay_figures import load_figures
from replay_simulation import Ours
from replay_table import Curve, load_table

from hpo.policy import report_decision, suggestions
from hpo.policy.objectives import is_known_before_training
from hpo.policy.search_config import SearchConfig
from hpo.policy.trial_attributes import DECISION, KNOWN, REPORT_INDEX, REPORTS
from hpo.policy.trial_objectives import objective_values
from model.training_report import EvalReport, objective_value
from search_spaces import Space

Vector = tuple[float, ...]  # a figure for each objective, all to be maximized
PSNR_STD = 0.05  # dB, between trainings with equal settings: docs/quality.md has 28.58 and 28.62 for two seeds
NOISY = {"psnr": 20.55, "ssim": 0.6815}  # of the noisy images of Fashion-MNIST (gaussian:30)


class Landscape:
    """A table of curves with several objectives, scaled so that each one's useless value is 0 and its best is 1."""

    def __init__(self, path: Path, objectives: tuple[str, ...]) -> None:
        self.table, self.objectives = load_table(path, objectives), objectives
        needed = any(is_known_before_training(name) for name in objectives)
        figures = load_figures(path) if needed else [{} for _ in self.table.curves]
        self._known = {id(curve): known for curve, known in zip(self.table.curves, figures, strict=True)}
        self.digest = hashlib.sha256(f"{self.table.digest} {json.dumps(figures)}".encode()).hexdigest()
        vectors = [self.vectors(curve, self.known(curve)) for curve in self.table.curves if curve.is_full]
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

    def varied(self, curve: Curve, draw: float) -> Curve:
        """A training of a configuration: it differs from others of the same one by a draw of a normal distribution."""
        reports = [
            replace(report, psnr_db=report.psnr_db + PSNR_STD * draw, ssim=report.ssim + PSNR_STD / 40 * draw)
            for report in curve.reports
        ]
        return self.table.new_curve(curve.params, reports, is_full=curve.is_full)

    def vectors(self, curve: Curve, known: Mapping[str, float]) -> list[Vector]:
        """The objectives by epoch."""
        return [self.vector(report, known) for report in curve.reports]

    def vector(self, report: EvalReport, known: Mapping[str, float]) -> Vector:
        """The objectives after an epoch, all to be maximized; the negative logarithm of known ones."""
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
    vectors: Sequence[Vector]  # by epoch
    usual: Sequence[Vector]  # those that were recorded, without this training's luck
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

    def until(self, epoch: int) -> list[Vector]:
        """The objectives after an epoch, and those of the best one until then."""
        best = max(range(epoch), key=lambda index: self.curve.values[index])
        return [self.vectors[epoch - 1], self.vectors[best]]


def simulate_front(
    decider: FrontDecider,
    landscape: Landscape,
    *,
    seed: int,
    workers: int,
    budget: float,
    trials: float = math.inf,
    varies: bool = True,
) -> FrontOutcome:
    """Simulate a search until it spends `budget` epochs, or until `trials` trials have ended.

    A configuration that diverges at some time never counts for the front: the product would drop it. varies: whether
    trainings of one configuration differ by chance; luck does not count for the front. Otherwise equal ones survive
    together: the worst case.
    """
    began, now, epochs, wrong = time.perf_counter(), 0.0, 0, 0
    jitter, draws = random.Random(seed), random.Random(f"training {seed}")  # workers report in changing order
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
                begun[key], known = _begin(params, landscape, draws.gauss(0, 1) if varies else 0.0)
                decider.begin(key, known)
            heapq.heappush(events, (now + jitter.uniform(0.9, 1.1), key))
        if not events:
            break
        now, key = heapq.heappop(events)
        epochs, trial = epochs + 1, begun[key]
        trial.advance()
        if trial.curve.is_full:
            front.add(landscape.unit(trial.usual[trial.epoch - 1]), epochs)
        is_last = trial.epoch == len(trial.curve.reports)
        told = trial.curve.reports[trial.epoch - 1], trial.vectors[trial.best - 1]
        if decider.report(key, *told, is_last) and not is_last:
            heapq.heappush(events, (now + jitter.uniform(0.9, 1.1), key))
        elif not is_last and not hasattr(decider, "resume"):  # a paused trial is not pruned
            wrong += _is_on_front(trial, begun.values())
    return FrontOutcome(
        volumes=front.volumes,
        epochs=epochs,
        trials=len(begun),
        seconds=time.perf_counter() - began,
        wrong_prunings=wrong,
    )


def _begin(params: Mapping[str, Any], landscape: Landscape, draw: float) -> tuple[_Trial, Mapping[str, float]]:
    recorded = landscape.table.curve(params)
    known, curve = landscape.known(recorded), landscape.varied(recorded, draw)
    vectors, usual = landscape.vectors(curve, known), landscape.vectors(recorded, known)
    return _Trial(curve=curve, vectors=vectors, usual=usual), known


def _is_on_front(trial: _Trial, trials: Iterable[_Trial]) -> bool:
    """Whether no living trial was better at its epoch, neither by that epoch's figures nor by those of the best one."""
    own = trial.until(trial.epoch)
    rivals = [other.until(trial.epoch) for other in trials if other.epoch >= trial.epoch and not other.is_dead]
    return not any(dominates(a, b) for rival in rivals for a, b in zip(rival, own, strict=True))


def dominates(a: Vector, b: Vector) -> bool:
    """Whether a is at least as good as b everywhere, and better somewhere; both are to be maximized."""
    return a != b and all(x >= y for x, y in zip(a, b, strict=True))


def volume_at(outcome: FrontOutcome, epochs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The share of the hypervolume after so many epochs; after the search's end, that at its end."""
    steps = np.array([0, *(epoch for epoch, _ in outcome.volumes)])
    values = np.array([0.0, *(volume for _, volume in outcome.volumes)])
    return values[np.searchsorted(steps, epochs, side="right") - 1]


class OursFront(Ours):
    """The product's decisions with several objectives; another `suggest` or `judge` makes a variant to compare."""

    def begin(self, key: int, known: Mapping[str, float]) -> None:
        """Like Record.set_known; no limit ends a trial here."""
        self.trials[key].user_attrs[KNOWN] = dict(known)

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
        values = objective_values(trial, self._search) or {}
        trial.values, trial.datetime_complete = list(values.values()), trial.datetime_start
        return False


def ours_front(space: Space, search: SearchConfig, **changed: Any) -> OursFront:
    """Make `OursFront` with some settings of SearchConfig changed."""
    search = replace(search, **changed)
    return OursFront(space, search, suggest=suggestions.suggest, judge=report_decision.decide_pruning)
