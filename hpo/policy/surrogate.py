"""An Optuna sampler: a Gaussian process over all values that trials have reported, those that were pruned included.

It only tells a promising part of the space from the rest; within it the choice is what differs most from all that was
tried. With a few hundred noisy reports the very best point of a model is mostly an artefact, and suggestions that crowd
around it learn what is known (docs/log.md has the figures).
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping, Sequence
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
_PROMISING = 0.3  # of them are
_FARTHEST = 8  # of these in turn, drawn at random, the one farthest from all trials: not the outermost corner each time
_POINTS = 160  # reports that the process is fitted to: its cost grows with their cube
_WEIGHTS = (0.1, 1.0, 5.0)  # tried for each parameter, times its starting weight: not relevant ... relevant
_NOISES = (0.01, 0.03, 0.1)  # variances, of 1
_CATEGORY = 0.5  # squared, twice: what two categories are apart, on the scale where numbers span 1


class SurrogateSampler(BaseSampler):
    """Suggests from the part of the space that promises the best value after the last epoch, far from what was tried.

    What it suggests is a function of the study's trials, the seed and the trial's number alone. Spaces may be
    conditional.

    Args:
        seed: of all that is drawn.
        epochs: of a trial that is never pruned, the last step that it reports; None: the highest step in the study.
        n_startup_trials: drawn at random before the first that is suggested.
        random_share: of the later ones, in [0, 1], are drawn at random too: parts of the space that the process is
            wrong about are found again.
    """

    def __init__(
        self, *, seed: int = 0, epochs: int | None = None, n_startup_trials: int = 6, random_share: float = 0.3
    ) -> None:
        self._seed, self._epochs = seed, epochs
        self._n_startup_trials, self._random_share = n_startup_trials, random_share

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All parameters that any trial had. Raises ValueError for several objectives."""
        self._raise_error_if_multi_objective(study)
        return {name: of for other in _others(study, trial) for name, of in other.distributions.items()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Values for a structure of the space that was seen; none where the trial is drawn at random."""
        others, rng = _others(study, trial), np.random.default_rng(_mixed(self._seed, trial.number))
        if trial.number < self._n_startup_trials or rng.random() < self._random_share:
            return {}
        epochs = self._epochs or max((max(other.intermediate_values, default=1) for other in others), default=1)
        return propose([_maximised(other, study.direction, epochs) for other in others], epochs, rng) or {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """At random."""
        sampler = RandomSampler(seed=_mixed(self._seed, trial.number, param_name))
        return sampler.sample_independent(study, trial, param_name, param_distribution)


def _others(study: Study, trial: FrozenTrial) -> list[FrozenTrial]:
    """All trials but this one, without copies."""
    return [other for other in study.get_trials(deepcopy=False) if other.number != trial.number]


def _mixed(*of: int | str) -> int:
    """A seed of its own for each."""
    return int.from_bytes(hashlib.sha256(repr(of).encode()).digest()[:4], "little")


def _maximised(trial: FrozenTrial, direction: StudyDirection, last: int) -> FrozenTrial:
    """As one that is to be maximised; a value without reports is that of the last epoch, and what is not finite was
    never reported."""
    values = trial.intermediate_values
    if not values and trial.value is not None:
        values = {last: trial.value}
    sign = 1 if direction == StudyDirection.MAXIMIZE else -1
    told = copy.copy(trial)
    told.intermediate_values = {step: sign * value for step, value in values.items() if math.isfinite(value)}
    return told


def propose(trials: Sequence[FrozenTrial], epochs: int, rng: np.random.Generator) -> dict[str, Any] | None:
    """Parameters of a new trial; None where there is nothing to learn from yet.

    epochs: of a trial that is never stopped.
    """
    told = [trial for trial in trials if trial.intermediate_values and trial.state != TrialState.FAIL]
    reports = _reports(told, {2**power for power in range(epochs.bit_length())})
    if len(told) < 3:
        return None
    encoding = _Encoding.of(trials)
    owners = [told[report.owner].params for report in reports]
    gain = _expected_gains(told, epochs)
    values = np.array([report.value + gain[min(report.epoch, epochs)] for report in reports])
    times = np.array([_time(report.epoch, epochs) for report in reports])
    process = _Process.fitted(encoding.encode(owners), times, _standardized(values))
    candidates = [encoding.draw(rng) for _ in range(_CANDIDATES)]
    encoded = encoding.encode(candidates)
    best = np.argsort(-process.at_the_end(encoded), kind="stable")[: int(_PROMISING * _CANDIDATES)]
    drawn = rng.permutation(best)[:_FARTHEST]
    tried = encoding.encode([trial.params for trial in trials])
    apart = process.apart([block[drawn] for block in encoded], tried)
    return candidates[int(drawn[apart.min(axis=1).argmax()])]


@dataclass(frozen=True, slots=True)
class _Report:
    owner: int
    epoch: int
    value: float


def _reports(trials: Sequence[FrozenTrial], epochs: set[int]) -> list[_Report]:
    """Those at the given epochs and each trial's last. Where they are too many, the latest and the newest trials'."""
    first: list[_Report] = []
    later: list[_Report] = []
    for owner in reversed(range(len(trials))):
        if len(later) >= _POINTS:
            break
        values = trials[owner].intermediate_values
        for epoch in (1,) if len(values) == 1 else sorted((values.keys() & epochs) | {max(values)}):
            into = later if epoch > 1 else first
            if len(into) < _POINTS:
                into.append(_Report(owner, epoch, values[epoch]))
    return [*later, *first][:_POINTS]


def _expected_gains(trials: Sequence[FrozenTrial], epochs: int) -> Array:
    """By epoch: what is still to come until the last one. From rises within trials: those that were stopped differ
    from those that went on, so that means over trials would mislead."""
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
    gains: Array = expected[::-1].cumsum()[::-1]
    return gains


def _standardized(values: Array) -> Array:
    """Mean 0, deviation 1. How bad the bad ones are would drown all other differences: a diverged one has the floor."""
    middle = np.median(values)
    spread = np.quantile(values, 0.9) - middle + 1e-6
    held = np.maximum(values, middle - 2 * spread)
    standardized: Array = (held - held.mean()) / (held.std() + 1e-9)
    return standardized


def _time(epoch: int, epochs: int) -> float:
    """Learning goes with the logarithm; the last epoch is 1."""
    return math.log(max(epoch, 1)) / math.log(epochs) if epochs > 1 else 1.0  # others count steps from 0


@dataclass(frozen=True, slots=True)
class _Encoding:
    """Parameters as points. A parameter that a configuration lacks stands in the middle."""

    distributions: Mapping[str, BaseDistribution]
    structures: Sequence[Mapping[str, Sequence[Any]]]  # for each set of names seen: their categories; none of a number

    @classmethod
    def of(cls, trials: Sequence[FrozenTrial]) -> _Encoding:
        distributions: dict[str, BaseDistribution] = {}
        for trial in trials:
            distributions.update(trial.distributions)
        categories = [name for name, of in distributions.items() if isinstance(of, CategoricalDistribution)]
        seen: dict[tuple[str, ...], dict[str, dict[Any, None]]] = {}
        for trial in trials:
            structure = seen.setdefault(tuple(trial.params), {name: {} for name in trial.params})
            for name in categories:
                if name in structure:
                    structure[name][trial.params[name]] = None
        structures = [{name: list(choices) for name, choices in structure.items()} for structure in seen.values()]
        return cls(dict(sorted(distributions.items())), structures)

    def encode(self, many: Sequence[Mapping[str, Any]]) -> list[Array]:
        """One array (N, coordinates) for each parameter."""
        blocks = []
        for name, distribution in self.distributions.items():
            given = [params.get(name) for params in many]
            if isinstance(distribution, CategoricalDistribution):
                places = {choice: place for place, choice in enumerate(distribution.choices)}
                one_hot = np.eye(len(places) + 1, len(places)) * _CATEGORY  # the last row: none of them
                block = one_hot[[places.get(value, len(places)) for value in given]]
            else:
                block = _to_unit(distribution, np.array([[value] for value in given], dtype=float))
            blocks.append(block)
        return blocks

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        """Uniformly: one of the structures, a category each, and numbers. What one category asks for another may not: a
        combination that the space does not have is put right by the space, which is asked before it is tried."""
        sizes = [math.prod(len(choices) or 1 for choices in structure.values()) for structure in self.structures]
        ends = np.cumsum(sizes)
        place = int(rng.integers(ends[-1]))
        index = int(np.searchsorted(ends, place, side="right"))
        place, drawn = place - int(ends[index]) + sizes[index], {}
        for name, choices in self.structures[index].items():
            if choices:
                place, choice = divmod(place, len(choices))
                drawn[name] = choices[choice]
            else:
                drawn[name] = _from_unit(self.distributions[name], rng.random())
        return drawn


def _range(distribution: Any) -> tuple[Any, float, float]:
    """Scale and ends; those of whole numbers and steps reach half a step further, so that all are equally likely."""
    scale = math.log if distribution.log else float
    half = (distribution.step or 0) / 2
    if distribution.log and distribution.low - half <= 0:
        half = 0.0
    return scale, scale(distribution.low - half), scale(distribution.high + half)


def _to_unit(distribution: BaseDistribution, values: Array) -> Array:
    """NaN, where a configuration lacks the parameter, to the middle."""
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
    """A Gaussian process with a Matern 5/2 kernel over parameters and time, each with a weight of its own."""

    points: list[Array]
    times: Array
    weights: Array
    solved: Array  # inverse covariance times values

    @classmethod
    def fitted(cls, points: list[Array], times: Array, values: Array) -> _Process:
        """Weights and noise by likelihood, one after another; a weak prior holds the weights of parameters down."""
        apart = np.stack([*(_squares(block, block) for block in points), _squares(times[:, None], times[:, None])])
        start = np.array([2.0] * len(points) + [0.3])
        best = (-math.inf, start, _NOISES[1], np.zeros(len(values)))
        trials = [(i, factor) for i in range(len(start)) for factor in _WEIGHTS if factor != 1]
        for index, factor in [(0, 1.0), *trials]:
            weights = best[1].copy()
            weights[index] *= factor
            best = max(best, cls._likelihood(apart, values, weights, best[2]), key=lambda fit: fit[0])
        for noise in _NOISES:
            best = max(best, cls._likelihood(apart, values, best[1], noise), key=lambda fit: fit[0])
        return cls(points, times, best[1], best[3])

    @staticmethod
    def _likelihood(apart: Array, values: Array, weights: Array, noise: float) -> tuple[float, Array, float, Array]:
        covariance = _kernel(weights, apart) + noise * np.eye(len(values))
        root = np.linalg.cholesky(covariance)
        solved = np.asarray(np.linalg.solve(covariance, values), dtype=np.float64)
        prior = -0.0375 * float((np.log(weights[:-1]) ** 2).sum())
        return float(-0.5 * values @ solved - np.log(np.diag(root)).sum()) + prior, weights, noise, solved

    def at_the_end(self, points: list[Array]) -> Array:
        """Expected values (N,) after the last epoch."""
        count = len(points[0])
        apart = [_squares(theirs, ours) for theirs, ours in zip(points, self.points, strict=True)]
        apart.append(_squares(np.ones((count, 1)), self.times[:, None]))
        expected: Array = _kernel(self.weights, np.stack(apart)) @ self.solved
        return expected

    def apart(self, points: list[Array], others: list[Array]) -> Array:
        """Squared distances (N, M) by what matters to the values."""
        apart = np.stack([_squares(ours, theirs) for ours, theirs in zip(points, others, strict=True)])
        distances: Array = np.tensordot(self.weights[:-1], apart, 1)
        return distances


def _squares(a: Array, b: Array) -> Array:
    squares: Array = ((a[:, None] - b[None]) ** 2).sum(axis=-1)
    return squares


def _kernel(weights: Array, apart: Array) -> Array:
    distance = np.sqrt(5 * np.tensordot(weights, apart, 1))
    kernel: Array = (1 + distance + distance**2 / 3) * np.exp(-distance)
    return kernel
