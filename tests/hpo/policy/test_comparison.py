"""Paired comparisons, held to scipy's and to simulations whose truth is known."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats

from hpo.policy.comparison import (
    ERROR,
    Comparison,
    choose,
    compare_images,
    compare_seeds,
    mean_interval,
    num_pairs,
)


def images(difference: float, spread: float = 0.5, count: int = 5_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two networks' values on images that differ by 3 dB in difficulty."""
    rng = np.random.default_rng(seed)
    second = 28 + 3 * rng.standard_normal(count)
    return second + difference + spread * rng.standard_normal(count), second


def test_the_interval_over_images_is_that_of_a_paired_t_test():
    first, second = images(0.02)
    found, expected = compare_images(first, second), stats.ttest_rel(first, second).confidence_interval(0.95)
    assert found.difference == pytest.approx(first.mean() - second.mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=6e-4)
    assert found.count == 5_000
    assert found.confidence == 0.95


def test_the_probability_over_images_is_that_of_a_one_sided_test():
    first, second = images(0.004)
    expected = stats.ttest_rel(first, second, alternative="less").pvalue
    assert 0.6 < expected < 0.99
    assert compare_images(first, second).probability == pytest.approx(expected, abs=0.02)


def test_pairing_removes_the_images_difficulty():
    """Unpaired, 0.05 dB would be lost among images that differ by 3 dB."""
    first, second = images(0.05)
    assert compare_images(first, second).verdict == "better"
    assert stats.ttest_ind(first, second).pvalue > 0.3


def test_equal_networks_tie_in_95_of_100_comparisons():
    verdicts = [compare_images(*images(0.0, count=500, seed=seed)).verdict for seed in range(200)]
    assert stats.binomtest(verdicts.count("tie"), 200, 0.95).pvalue > 0.01


def test_more_pairs_make_the_interval_wider_and_the_same_images_the_same_interval():
    first, second = images(0.02)
    one, three = compare_images(first, second), compare_images(first, second, pairs=3)
    assert three.high - three.low > 1.15 * (one.high - one.low)
    assert three.confidence == pytest.approx(1 - ERROR / 3)
    assert compare_images(first, second) == one


def test_a_comparison_the_other_way_round_says_the_opposite():
    first, second = images(0.05)
    there, back = compare_images(first, second), compare_images(second, first)
    assert (there.verdict, back.verdict) == ("better", "worse")
    assert there.reversed().difference == pytest.approx(back.difference)
    assert there.reversed().low == pytest.approx(back.low, abs=1e-3)


@pytest.mark.parametrize(("shift", "verdict"), [(0.0, "tie"), (0.5, "better"), (-0.5, "worse")])
def test_networks_that_differ_by_the_same_on_each_image_are_compared_too(shift, verdict):
    values = np.arange(10.0)
    assert compare_images(values + shift, values).verdict == verdict


def test_a_single_image_or_seed_says_nothing():
    one = compare_images(np.array([3.0]), np.array([1.0]))
    assert (one.verdict, one.probability) == ("tie", 0.5)
    seed = compare_seeds(np.array([[3.0], [1.0]]), 0, 1, error=ERROR)
    assert (seed.verdict, seed.low, seed.high) == ("tie", -math.inf, math.inf)
    assert Comparison.from_dict(json.loads(json.dumps(seed.as_dict(), allow_nan=False))) == seed


def test_two_settings_over_seeds_are_a_paired_t_test():
    values = np.random.default_rng(3).standard_normal((2, 6))
    found, expected = compare_seeds(values, 0, 1, error=0.05), stats.ttest_rel(*values)
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert 2 * min(found.probability, 1 - found.probability) == pytest.approx(expected.pvalue)


def test_three_settings_share_the_variance_of_a_two_way_analysis():
    """With few seeds: the residuals of a least squares fit of settings and seeds, with 4 degrees of freedom."""
    values = np.array([[28.3, 28.0, 28.2], [28.1, 28.1, 27.9], [27.9, 27.9, 28.1]])
    design = np.array([[s == 0, s == 1, s == 2, r == 1, r == 2] for s in range(3) for r in range(3)], float)
    fitted, residual, rank, _ = np.linalg.lstsq(design, values.ravel(), rcond=None)
    variance = residual[0] / (values.size - rank) * 2 / 3
    assert values[0].var() < 1
    own = (values[0] - values[1]).var(ddof=1) / 3
    half = stats.t.ppf(0.975, values.size - rank) * math.sqrt(max(variance, own))
    found = compare_seeds(values, 0, 1, error=0.05)
    assert found.difference == pytest.approx(fitted[0] - fitted[1])
    assert found.high - found.low == pytest.approx(2 * half)


def test_stable_settings_are_not_judged_by_an_unstable_one():
    rng = np.random.default_rng(5)
    stable = rng.standard_normal((2, 6)) * 0.05 + [[28.3], [28.0]]
    unstable = 28 + 2 * rng.standard_normal((1, 6))
    found = compare_seeds(np.concatenate([stable, unstable]), 0, 1, error=0.05)
    assert found.verdict == "better"
    assert found.high - found.low < 0.5
    wild = compare_seeds(np.concatenate([stable, unstable]), 0, 2, error=0.05)
    assert wild.high - wild.low > 1


def test_the_interval_of_a_mean_is_students():
    values = [28.1, 28.4, 28.2]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean_interval(values) == pytest.approx((np.mean(values), expected.low, expected.high))
    assert mean_interval([3.0]) == (3.0, -math.inf, math.inf)


def test_a_tie_goes_to_the_smaller_network_and_equal_sizes_to_the_higher_mean():
    means = {4: 28.3, 1: 28.2, 7: 28.25}
    assert choose(means, [4, 1, 7], {4: 900, 1: 500, 7: 500}) == 7
    assert choose(means, [4, 1, 7], {4: 500, 1: 500, 7: 500}) == 4
    assert choose(means, [4, 1], {4: 900, 7: 100}) == 4  # a size is unknown
    assert choose({2: 1.0, 1: 1.0}, [2, 1], {}) == 1


def test_all_pairs_share_the_error():
    assert [num_pairs(finalists) for finalists in (1, 2, 3, 5)] == [1, 1, 3, 10]
