"""Paired comparisons: of two networks over the same images, and of two settings over the same seeds. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

ERROR = 0.05  # probability that any of the comparisons of a search finds a difference where there is none
_RESAMPLES = 5_000  # 42 of them are beyond each end of the interval of one pair among three finalists
_BATCH = 100  # of 5,000 indices each: 4 MB
_UNLIKE = 4.0  # a pair this much less noisy than the mean pair has its own variance
_ENOUGH_SEEDS = 4  # for a variance of one pair alone: at three, a factor of four is frequent by chance

Verdict = Literal["better", "tie", "worse"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """How much better the first one is than the second, with larger values being better."""

    difference: float  # of the means
    low: float
    high: float
    confidence: float  # of the interval from low to high; above 0.95 where several pairs or looks share the error
    probability: float  # that the first one is better
    count: int  # images, or seeds

    @property
    def verdict(self) -> Verdict:
        """What the first one is: a tie while the interval includes zero."""
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "tie"

    def reversed(self) -> Comparison:
        """The comparison of the second one with the first."""
        return Comparison(
            difference=-self.difference,
            low=-self.high,
            high=-self.low,
            confidence=self.confidence,
            probability=1 - self.probability,
            count=self.count,
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, with the verdict; an end that is infinite is None."""
        ends = {name: end if math.isfinite(end := getattr(self, name)) else None for name in ("low", "high")}
        return {**asdict(self), **ends, "verdict": self.verdict}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Comparison:
        """The inverse of as_dict."""
        fields: dict[str, Any] = {name: values[name] for name in cls.__dataclass_fields__}
        ends = {"low": -math.inf, "high": math.inf}
        return cls(**fields | {name: end for name, end in ends.items() if fields[name] is None})


def num_pairs(finalists: int) -> int:
    """The number of pairs that share the error. All count: the best one, with which others are compared, is chosen by
    the same values."""
    return max(1, finalists * (finalists - 1) // 2)


def compare_images(first: np.ndarray, second: np.ndarray, *, pairs: int = 1, seed: int = 0) -> Comparison:
    """Compare two networks by their values on the same images: the percentile bootstrap of the mean difference.

    It says which of these two networks is better on images like these. It says nothing about their settings: another
    seed gives another network.

    Args:
        first: (N,), a value for each image; so is `second`.
        pairs: comparisons that share the error.
        seed: of the resampling.
    """
    from scipy.stats import bootstrap  # noqa: PLC0415 - takes half a second, and readers of a record compare nothing

    differences = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    confidence, mean = 1 - ERROR / pairs, float(differences.mean())
    if len(differences) < 2 or np.ptp(differences) == 0:  # one image, or two equal networks
        spread = math.inf if len(differences) < 2 else 0.0
        sure = 0.5 if mean == 0 or spread else float(mean > 0)
        low, high = mean - spread, mean + spread
    else:
        rng = np.random.default_rng(seed)
        options: dict[str, Any] = {"n_resamples": _RESAMPLES, "batch": _BATCH, "method": "percentile", "rng": rng}
        result = bootstrap((differences,), np.mean, confidence_level=confidence, **options)
        low, high = (float(end) for end in result.confidence_interval)
        means = result.bootstrap_distribution
        sure = float(((means > 0) + 0.5 * (means == 0)).mean())
    return Comparison(
        difference=mean, low=low, high=high, confidence=confidence, probability=sure, count=len(differences)
    )


def compare_seeds(values: np.ndarray, first: int, second: int, *, error: float) -> Comparison:
    """Compare two settings by their values with the same seeds: a t interval of the mean paired difference.

    The variance is that of all settings together, what is left of a value after its setting's and its seed's mean: with
    three settings that doubles the degrees of freedom of few seeds. A pair that is noisier than the others has its own
    variance, since an unstable setting must not be judged by the stable ones; so has one that is much less noisy.

    Args:
        values: (settings, seeds), finite.
        error: the probability of a false difference that this comparison may have.
    """
    from scipy.special import stdtr, stdtrit  # noqa: PLC0415 - as above

    settings, seeds = values.shape
    differences = values[first] - values[second]
    mean = float(differences.mean())
    if seeds < 2:
        return Comparison(
            difference=mean, low=-math.inf, high=math.inf, confidence=1 - error, probability=0.5, count=seeds
        )
    residuals = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0) + values.mean()
    freedom = (settings - 1) * (seeds - 1)
    own, pooled = float(differences.var(ddof=1)), 2 * float((residuals**2).sum()) / freedom
    if seeds >= _ENOUGH_SEEDS and _UNLIKE * own < pooled:
        variance, freedom = own, seeds - 1
    else:
        variance = max(own, pooled)
    standard_error = math.sqrt(variance / seeds)
    half = float(stdtrit(freedom, 1 - error / 2)) * standard_error
    probability = float(stdtr(freedom, mean / standard_error)) if standard_error else 0.5 + 0.5 * np.sign(mean)
    return Comparison(
        difference=mean,
        low=mean - half,
        high=mean + half,
        confidence=1 - error,
        probability=float(probability),
        count=seeds,
    )


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """The mean over seeds, and the ends of its t interval; infinite ends for a single seed."""
    from scipy.special import stdtrit  # noqa: PLC0415 - as above

    array = np.asarray(values, np.float64)
    mean = float(array.mean())
    if len(array) < 2:
        return mean, -math.inf, math.inf
    half = float(stdtrit(len(array) - 1, (1 + confidence) / 2)) * float(array.std(ddof=1)) / math.sqrt(len(array))
    return mean, mean - half, mean + half


def choose(means: Mapping[int, float], ties: Sequence[int], parameters: Mapping[int, int]) -> int:
    """The winner among those that tie with the best: the smallest; of equal sizes the one with the highest mean.

    Args:
        means: of each candidate, by its number.
        ties: the best one and those that tie with it.
        parameters: sizes of the networks; a missing one counts as equal to the others.
    """
    known = all(number in parameters for number in ties)
    return min(ties, key=lambda number: (parameters[number] if known else 0, -means[number], number))
