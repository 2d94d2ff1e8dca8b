"""An Optuna sampler: a Gaussian process over all reported values separates the promising part of the space, in which
the point is suggested that differs most from all trials. With a few hundred noisy reports the very best point of a
model is mostly an artefact, and suggestions that crowd around it learn nothing new (docs/log.md has the figures)."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

Array: TypeAlias = npt.NDArray[np.float64]

_CANDIDATES = 128  # drawn uniformly
_PROMISING = 0.3  # share of the candidates with the best expected values
_FINALISTS = 8  # drawn from them; the one farthest from all trials is suggested, so not the outermost corner each time
_MAX_REPORTS = 160  # that the process is fitted to: its cost grows with their cube
_WEIGHT_FACTORS = (0.1, 1.0, 5.0)  # tried for each parameter: not relevant ... relevant
_NOISES = (0.01, 0.03, 0.1)  # variances; the values' variance is 1
_FRONT_STARTUP_TRIALS = 20
_RHO = 0.05  # of the sum in a Tchebycheff scalarisation: it decides among points that are equally bad
_CATEGORY = 0.5  # of a one-hot vector; numbers span 1


class SurrogateSampler(BaseSampler):
    """Suggests from the part of the space with the best expected value after the last epoch, far from all trials.

    A suggestion is a function of the study's trials, the seed and the trial's number alone. Spaces may be conditional.

    Args:
        seed: for all random numbers.
        epochs: the last step of a trial that is never pruned; None: the highest step in the study.
        n_startup_trials: trials that are drawn at random before the first suggestion; 20 where several objectives
            differ among the trials, since a front needs more of the space (docs/search.md).
        random_share: the share of later trials, in [0, 1], that are drawn at random, too: they find again the parts of
            the space that the process is wrong about.
        points: for several objectives, by step the values of a trial, all of them to be maximized. Each suggestion
            weighs them differently (Knowles 2006, ParEGO), so that together they spread over the front.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        epochs: int | None = None,
        n_startup_trials: int = 6,
        random_share: float = 0.3,
        points: Callable[[FrozenTrial], Mapping[int, Sequence[float]]] | None = None,
    ) -> None:
        self._points = points
        self._seed, self._epochs = seed, epochs
        self._n_startup_trials, self._random_share = n_startup_trials, random_share

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All parameters that any trial had. Raises ValueError for several objectives without `points`."""
        if self._points is None:
            self._raise_error_if_multi_objective(study)
        return {
            name: distribution for other in _others(study, trial) for name, distribution in other.distributions.items()
        }

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Values for one set of parameters that trials had; empty if the trial is drawn at random."""
        others, rng = _others(study, trial), np.random.default_rng(_derive_seed(self._seed, trial.number))
        if trial.number < self._startup_trials(others) or rng.random() < self._random_share:
            return {}
        epochs = self._epochs or max((max(other.intermediate_values, default=1) for other in others), default=1)
        if self._points:
            weights_rng = np.random.default_rng(_derive_seed(self._seed, trial.number, "weights"))
            return propose(_scalarized(others, self._points, weights_rng), epochs, rng) or {}
        return propose([_maximized(other, study.direction, epochs) for other in others], epochs, rng) or {}

    def _startup_trials(self, others: Sequence[FrozenTrial]) -> int:
        points = [point for other in others for point in self._points(other).values()] if self._points else []
        differ = sum(len(set(values)) > 1 for values in zip(*points, strict=True))
        return _FRONT_STARTUP_TRIALS if differ > 1 else self._n_startup_trials

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw a value at random."""
        sampler = RandomSampler(seed=_derive_seed(self._seed, trial.number, param_name))
        return sampler.sample_independent(study, trial, param_name, param_distribution)


def _others(study: Study, trial: FrozenTrial) -> list[FrozenTrial]:
    """All other trials, not copied."""
    return [other for other in study.get_trials(deepcopy=False) if other.number != trial.number]


def _derive_seed(*parts: int | str) -> int:
    """A separate seed for each combination."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "little")


def _maximized(trial: FrozenTrial, direction: StudyDirection, last: int) -> FrozenTrial:
    """A copy to be maximized, with finite values alone. A value without reports counts as that of the last epoch."""
    values = trial.intermediate_values
    if not values and trial.value is not None:
        values = {last: trial.value}
    sign = 1 if direction == StudyDirection.MAXIMIZE else -1
    maximized = copy.copy(trial)
    maximized.intermediate_values = {step: sign * value for step, value in values.items() if math.isfinite(value)}
    return maximized


def _scalarized(
    trials: Sequence[FrozenTrial],
    points: Callable[[FrozenTrial], Mapping[int, Sequence[float]]],
    rng: np.random.Generator,
) -> list[FrozenTrial]:
    """Copies whose values are all objectives in one, with random weights: the augmented Tchebycheff distance below the
    ideal point. An objective that does not vary counts as reached, so it changes nothing."""
    by_trial = [points(trial) for trial in trials]
    copies = [copy.copy(trial) for trial in trials]
    bests = np.array([np.max(list(by_step.values()), axis=0) for by_step in by_trial if by_step])
    if not len(bests):
        return copies
    low, ideal = np.quantile(bests, 0.2, axis=0), bests.max(axis=0)
    low = np.where(low < ideal, low, bests.min(axis=0))  # most trials have the best value: the others count
    span = np.where(ideal > low, ideal - low, np.inf)
    weights = rng.dirichlet(np.ones(len(ideal)))
    for trial, by_step in zip(copies, by_trial, strict=True):
        below = {step: weights * (np.array(point) - ideal) / span for step, point in by_step.items()}
        trial.intermediate_values = {step: float(each.min() + _RHO * each.sum()) for step, each in below.items()}
    return copies


def propose(trials: Sequence[FrozenTrial], epochs: int, rng: np.random.Generator) -> dict[str, Any] | None:
    """Propose parameters of a new trial; None if fewer than three trials have reported. trials: all, to be maximized.
    epochs: those of a trial that is never pruned."""
    reported = [trial for trial in trials if trial.intermediate_values and trial.state != TrialState.FAIL]
    reports = _select_reports(reported, {2**power for power in range(epochs.bit_length())})
    if len(reported) < 3:
        return None
    encoding = _Encoding.from_trials(trials)
    params = [reported[report.trial].params for report in reports]
    gain = _expected_gains(reported, epochs)
    values = np.array([report.value + gain[min(report.epoch, epochs)] for report in reports])
    times = np.array([_time(report.epoch, epochs) for report in reports])
    process = _Process.fitted(encoding.encode(params), times, _standardized(values))
    candidates = [encoding.draw(rng) for _ in range(_CANDIDATES)]
    encoded = encoding.encode(candidates)
    best = np.argsort(-process.final_values(encoded), kind="stable")[: int(_PROMISING * _CANDIDATES)]
    drawn = rng.permutation(best)[:_FINALISTS]
    known = encoding.encode([trial.params for trial in trials])
    distances = process.distances([block[drawn] for block in encoded], known)
    return candidates[int(drawn[distances.min(axis=1).argmax()])]


@dataclass(frozen=True, slots=True)
class _Report:
    trial: int  # index
    epoch: int
    value: float


def _select_reports(trials: Sequence[FrozenTrial], epochs: set[int]) -> list[_Report]:
    """The reports of the given epochs and each trial's last one. If they are too many, later epochs and newer trials
    come first."""
    first: list[_Report] = []
    later: list[_Report] = []
    for index in reversed(range(len(trials))):
        if len(later) >= _MAX_REPORTS:
            break
        values = trials[index].intermediate_values
        for epoch in (1,) if len(values) == 1 else sorted((values.keys() & epochs) | {max(values)}):
            target = later if epoch > 1 else first
            if len(target) < _MAX_REPORTS:
                target.append(_Report(index, epoch, values[epoch]))
    return [*later, *first][:_MAX_REPORTS]


def _expected_gains(trials: Sequence[FrozenTrial], epochs: int) -> Array:
    """By epoch, the expected rise until the last one. It comes from rises within trials: pruned trials differ from
    those that continued, so that means over trials would mislead."""
    rises: dict[int, list[float]] = {}
    for trial in trials:
        values = trial.intermediate_values
        for epoch in values:
            if epoch + 1 in values:
                rises.setdefault(epoch, []).append(values[epoch + 1] - values[epoch])
    expected, rise = np.zeros(epochs + 1), 0.0
    for epoch in range(1, epochs):
        rise = max(float(np.median(rises[epoch])), 0.0) if epoch in rises else 0.7 * rise
        expected[epoch] = rise
    return np.asarray(expected[::-1].cumsum()[::-1])


def _standardized(values: Array) -> Array:
    """Mean 0, deviation 1. Very bad values, as of diverged trials, are raised to a floor: they would hide all other
    differences."""
    middle = np.median(values)
    spread = np.quantile(values, 0.9) - middle + 1e-6
    clipped = np.maximum(values, middle - 2 * spread)
    standardized: Array = (clipped - clipped.mean()) / (clipped.std() + 1e-9)
    return standardized


def _time(epoch: int, epochs: int) -> float:
    """Epochs on a logarithmic scale, since learning slows down; the last one is 1."""
    return math.log(max(epoch, 1)) / math.log(epochs) if epochs > 1 else 1.0  # other studies count steps from 0


@dataclass(frozen=True, slots=True)
class _Encoding:
    """Parameters as points. A number that a configuration lacks is in the middle of its range."""

    distributions: Mapping[str, BaseDistribution]
    structures: Sequence[Mapping[str, Sequence[Any]]]  # for each set of names: the categories seen; empty for a number

    @classmethod
    def from_trials(cls, trials: Sequence[FrozenTrial]) -> _Encoding:
        distributions: dict[str, BaseDistribution] = {}
        for trial in trials:
            distributions.update(trial.distributions)
        categories = [name for name, each in distributions.items() if isinstance(each, CategoricalDistribution)]
        seen: dict[tuple[str, ...], dict[str, dict[Any, None]]] = {}
        for trial in trials:
            structure = seen.setdefault(tuple(trial.params), {name: {} for name in trial.params})
            for name in categories:
                if name in structure:
                    structure[name][trial.params[name]] = None
        structures = [{name: list(choices) for name, choices in structure.items()} for structure in seen.values()]
        return cls(dict(sorted(distributions.items())), structures)

    def encode(self, many: Sequence[Mapping[str, Any]]) -> list[Array]:
        """One array (N, coordinates) for each parameter, for N configurations."""
        blocks = []
        for name, distribution in self.distributions.items():
            values = [params.get(name) for params in many]
            if isinstance(distribution, CategoricalDistribution):
                indices = {choice: index for index, choice in enumerate(distribution.choices)}
                one_hot = np.eye(len(indices) + 1, len(indices)) * _CATEGORY  # the last row: no category
                block = one_hot[[indices.get(value, len(indices)) for value in values]]
            else:
                block = _to_unit(distribution, np.array([[value] for value in values], dtype=float))
            blocks.append(block)
        return blocks

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        """Draw uniformly from all structures and categories seen, with any numbers. The space itself corrects a
        combination that it does not have."""
        sizes = [math.prod(len(choices) or 1 for choices in structure.values()) for structure in self.structures]
        ends = np.cumsum(sizes)
        combination = int(rng.integers(ends[-1]))
        index = int(np.searchsorted(ends, combination, side="right"))
        combination, drawn = combination - int(ends[index]) + sizes[index], {}
        for name, choices in self.structures[index].items():
            if choices:
                combination, choice = divmod(combination, len(choices))
                drawn[name] = choices[choice]
            else:
                drawn[name] = _from_unit(self.distributions[name], rng.random())
        return drawn


def _range(distribution: Any) -> tuple[Any, float, float]:
    """Scale, lower and upper end. With steps, they reach half a step further, so that all values are equally likely."""
    scale = math.log if distribution.log else float
    half = (distribution.step or 0) / 2
    if distribution.log and distribution.low - half <= 0:
        half = 0.0
    return scale, scale(distribution.low - half), scale(distribution.high + half)


def _to_unit(distribution: BaseDistribution, values: Array) -> Array:
    """To [0, 1]. NaN, for a configuration without the parameter, becomes 0.5."""
    scale, low, high = _range(distribution)
    scaled = np.log(values) if scale is math.log else values
    return np.nan_to_num((scaled - low) / (high - low or 1.0), nan=0.5)


def _from_unit(distribution: BaseDistribution, position: float) -> float | int:
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    scale, low, high = _range(distribution)
    value = low + position * (high - low)
    value = math.exp(value) if scale is math.log else value
    if distribution.step:
        value = distribution.low + round((value - distribution.low) / distribution.step) * distribution.step
    value = min(max(value, distribution.low), distribution.high)
    return int(value) if isinstance(distribution, IntDistribution) else value


@dataclass(frozen=True, slots=True)
class _Process:
    """A Gaussian process with a Matern 5/2 kernel over parameters and time, each with its own weight."""

    points: list[Array]
    times: Array
    weights: Array
    solved: Array  # inverse covariance times values

    @classmethod
    def fitted(cls, points: list[Array], times: Array, values: Array) -> _Process:
        """Fit weights and noise by likelihood, one after another. A weak prior limits the parameters' weights."""
        squares = np.stack([*(_squares(block, block) for block in points), _squares(times[:, None], times[:, None])])
        start = np.array([2.0] * len(points) + [0.3])
        best = (-math.inf, start, _NOISES[1], np.zeros(len(values)))
        trials = [(i, factor) for i in range(len(start)) for factor in _WEIGHT_FACTORS if factor != 1]
        for index, factor in [(0, 1.0), *trials]:
            weights = best[1].copy()
            weights[index] *= factor
            best = max(best, cls._likelihood(squares, values, weights, best[2]), key=lambda fit: fit[0])
        for noise in _NOISES:
            best = max(best, cls._likelihood(squares, values, best[1], noise), key=lambda fit: fit[0])
        return cls(points, times, best[1], best[3])

    @staticmethod
    def _likelihood(squares: Array, values: Array, weights: Array, noise: float) -> tuple[float, Array, float, Array]:
        covariance = _kernel(weights, squares) + noise * np.eye(len(values))
        root = np.linalg.cholesky(covariance)
        solved = np.asarray(np.linalg.solve(covariance, values), dtype=np.float64)
        prior = -0.0375 * float((np.log(weights[:-1]) ** 2).sum())
        return float(-0.5 * values @ solved - np.log(np.diag(root)).sum()) + prior, weights, noise, solved

    def final_values(self, points: list[Array]) -> Array:
        """Expected values (N,) after the last epoch."""
        count = len(points[0])
        squares = [_squares(theirs, ours) for theirs, ours in zip(points, self.points, strict=True)]
        squares.append(_squares(np.ones((count, 1)), self.times[:, None]))
        return np.asarray(_kernel(self.weights, np.stack(squares)) @ self.solved)

    def distances(self, points: list[Array], others: list[Array]) -> Array:
        """Squared distances (N, M), weighted by the parameters' relevance."""
        squares = np.stack([_squares(ours, theirs) for ours, theirs in zip(points, others, strict=True)])
        distances: Array = np.tensordot(self.weights[:-1], squares, 1)
        return distances


def _squares(a: Array, b: Array) -> Array:
    """Squared distances (N, M) between points (N, coordinates) and (M, coordinates)."""
    squares: Array = ((a[:, None] - b[None]) ** 2).sum(axis=-1)
    return squares


def _kernel(weights: Array, squares: Array) -> Array:
    distance = np.sqrt(5 * np.tensordot(weights, squares, 1))
    kernel: Array = (1 + distance + distance**2 / 3) * np.exp(-distance)
    return kernel
