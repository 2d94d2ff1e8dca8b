"""The members of a front that are exported, against all subsets and against Optuna's hypervolume."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna._hypervolume import compute_hypervolume

from hpo.policy.front_members import FrontMember, choose_members, undominated
from hpo.policy.pareto import dominates, hypervolume
from hpo.policy.search_config import SearchConfig
from hpo.policy.trial_objectives import point_of
from model.common.errors import ConfigError

SEARCH = SearchConfig(objectives=("psnr", "latency"), front=3)
coordinates = st.floats(0.01, 10)


@given(st.integers(1, 4).flatmap(lambda n: st.lists(st.tuples(*[coordinates] * n), min_size=1, max_size=7)))
def test_the_hypervolume_is_that_of_optuna(points):
    theirs = compute_hypervolume(-np.array(points), np.zeros(len(points[0])), assume_pareto=False)
    assert hypervolume(points) == pytest.approx(theirs, rel=1e-9)


def test_a_point_beside_the_reference_adds_nothing():
    assert hypervolume([(2.0, 3.0), (5.0, -1.0)]) == 6.0


def front_of(psnr: list[float], latency: list[float]) -> dict[int, dict[str, float]]:
    return {i: {"psnr": p, "latency": ms} for i, (p, ms) in enumerate(zip(psnr, latency, strict=True))}


def scaled(values: dict[int, dict[str, float]], search: SearchConfig) -> dict[int, tuple[float, ...]]:
    """Each coordinate from 0.1, the worst, to 1.1."""
    points = np.array([point_of(each, search) for each in values.values()])
    low, high = points.min(axis=0), points.max(axis=0)
    return dict(zip(values, map(tuple, (points - low) / np.where(high > low, high - low, 1) + 0.1), strict=True))


def greedy_by_brute_force(values: dict[int, dict[str, float]], search: SearchConfig) -> set[int]:
    """Both ends, and then each time the one of all with which Optuna's hypervolume is the largest."""
    points = scaled(values, search)
    chosen = {max(points, key=lambda n, i=i: points[n][i]) for i in range(len(search.objectives))}

    def volume(numbers: set[int]) -> float:
        return compute_hypervolume(-np.array([points[n] for n in numbers]), np.zeros(len(search.objectives)), False)

    while len(chosen) < search.front:
        chosen = max((chosen | {n} for n in points.keys() - chosen), key=volume)
    return chosen


@pytest.mark.parametrize("objectives", [("psnr", "latency"), ("ssim", "latency", "params")])
@pytest.mark.parametrize("seed", range(10))
def test_a_large_front_is_cut_as_by_brute_force(objectives, seed):
    rng = np.random.default_rng(seed)
    search = SearchConfig(objectives=objectives, front=4)
    wild = {n: dict(zip(objectives, map(float, rng.uniform(1, 20, len(objectives))), strict=True)) for n in range(150)}
    for each in wild.values():
        each["latency"] += 3 * each[objectives[0]]
    values = {n: wild[n] for n in undominated(wild, search)}
    assert len(values) >= 5
    assert set(choose_members(wild, search)) == greedy_by_brute_force(values, search)


@pytest.mark.parametrize("seed", range(10))
def test_the_cut_is_nearly_the_best_of_all_that_have_both_ends(seed):
    """A greedy choice has 1 - 1/e of the best by theorem, and much more in practice."""
    rng, search = np.random.default_rng(seed), SearchConfig(objectives=("psnr", "latency"), front=5)
    values = front_of(sorted(rng.uniform(20, 29, 14)), sorted(rng.uniform(1, 50, 14)))
    points = scaled(values, search)
    subsets = [(0, 13, *inner) for inner in itertools.combinations(range(1, 13), 3)]
    best = max(hypervolume([points[n] for n in subset]) for subset in subsets)
    assert hypervolume([points[n] for n in choose_members(values, search)]) >= 0.95 * best


def test_a_small_front_is_kept_whole_and_the_best_is_first():
    values = front_of([26.0, 28.0, 27.0], [1.0, 30.0, 5.0])
    assert choose_members(values, SEARCH) == [1, 2, 0]


def test_a_dominated_trial_is_no_member():
    assert choose_members(front_of([28.0, 27.0, 26.0], [10.0, 11.0, 2.0]), SEARCH) == [0, 2]


@given(st.lists(st.tuples(st.floats(10, 30), st.floats(0.1, 100)), min_size=1, max_size=15), st.integers(1, 6))
def test_whatever_is_chosen_is_undominated_and_has_both_ends(points, most):
    values = front_of([psnr for psnr, _ in points], [ms for _, ms in points])
    search = SearchConfig(objectives=("psnr", "latency"), front=most)
    chosen = choose_members(values, search)
    assert 1 <= len(chosen) <= max(most, 1) or len(chosen) == len(undominated(values, search))
    assert max(psnr for psnr, _ in points) == values[chosen[0]]["psnr"]
    if most >= 2:
        assert min(ms for _, ms in points) == min(values[n]["latency"] for n in chosen)
    for a, b in itertools.permutations(chosen, 2):
        assert not dominates(point_of(values[a], search), point_of(values[b], search))


def test_latency_counts_by_its_logarithm():
    """In milliseconds, 40 ms and 27.8 dB would dominate more than 10 ms and 27 dB do."""
    values = front_of([28.0, 27.8, 27.0, 26.0], [100.0, 40.0, 10.0, 1.0])
    assert set(choose_members(values, SEARCH)) == {0, 2, 3}
    assert point_of({"psnr": 28.0, "latency": 10.0}, SEARCH) == (28.0, -math.log(10))


def test_the_first_trained_objective_comes_first_whatever_the_order():
    search = SearchConfig(objectives=("latency", "l1"), front=1)
    values = {1: {"latency": 5.0, "l1": 0.04}, 2: {"latency": 1.0, "l1": 0.05}}
    assert point_of(values[1], search)[0] == -0.04
    assert choose_members(values, search) == [1]


def test_a_damaged_note_of_a_member_is_refused():
    member = FrontMember(trial=1, values={"psnr": 28.0}, metrics={"psnr_db": 28.0}, latency={"median_ms": 3.0})
    assert FrontMember.from_dict(member.as_dict()) == member
    spoiled = ({"trial": "1"}, {"values": {"psnr": "high"}}, {"latency": {}}, {"what": 1}, {"metrics": None})
    for wrong in spoiled:
        with pytest.raises(ConfigError):
            FrontMember.from_dict(member.as_dict() | wrong)
