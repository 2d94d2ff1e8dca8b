"""Planted winners: simulated searches whose truth is known, decided by the product's own race."""

from __future__ import annotations

import numpy as np
import pytest
import replicates
from replicates import Planted, is_all_ties, is_called_better
from scipy.stats import binomtest

SEARCHES = 400


def share_of_ties(finalists: int, seeds: int, searches: int = SEARCHES) -> int:
    rng = np.random.default_rng(finalists * 100 + seeds)
    planted = Planted(finalists=finalists, seeds=seeds, standard_errors=0)
    return sum(is_all_ties(planted.race(rng)) for _ in range(searches))


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_settings_that_are_equal_are_called_a_tie_in_95_of_100_searches(seeds):
    assert share_of_ties(3, seeds) >= 0.95 * SEARCHES


@pytest.mark.parametrize("seeds", [2, 5])
def test_of_two_finalists_too_no_more_than_one_in_twenty_is_called_better_by_chance(seeds):
    """Two finalists and two seeds have one comparison, so that the share is exactly 95 %, give or take chance."""
    assert binomtest(share_of_ties(2, seeds), SEARCHES, 0.95, alternative="less").pvalue > 0.01


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_settings_that_are_better_by_two_standard_errors_win_in_95_of_100_searches(seeds):
    rng = np.random.default_rng(seeds)
    planted = Planted(finalists=2, seeds=seeds, standard_errors=2)
    wins = sum(planted.race(rng).winner == 0 for _ in range(SEARCHES))
    assert wins >= 0.95 * SEARCHES


def test_a_large_difference_is_called_one_and_costs_fewer_trainings():
    rng = np.random.default_rng(1)
    planted = Planted(finalists=3, seeds=5, standard_errors=10)
    races = [planted.race(rng) for _ in range(100)]
    assert sum(map(is_called_better, races)) >= 99
    assert np.mean([replicates.trainings_of(race, 3) for race in races]) < 12


def test_where_a_tie_goes_to_the_smaller_one_a_small_difference_does_not_help_the_larger():
    rng = np.random.default_rng(2)
    planted = Planted(finalists=2, seeds=3, standard_errors=2)
    races = [planted.race(rng, sizes=(2_000, 1_000)) for _ in range(200)]
    assert all((race.winner == 0) == is_called_better(race) for race in races)
    assert sum(race.winner == 1 for race in races) > 100


def test_two_networks_of_the_same_settings_differ_over_images():
    """So a comparison over images says nothing about settings."""
    rng = np.random.default_rng(3)
    verdicts = [replicates.compare_images(*replicates.networks(rng)).verdict for _ in range(20)]
    assert verdicts.count("tie") < 10


def test_the_searchs_figure_is_optimistic_and_that_of_the_replicates_hardly(capsys):
    replicates.print_optimism(400, np.random.default_rng(4))
    search, fresh = (float(line.split(": ")[1].split()[0]) for line in capsys.readouterr().out.splitlines())
    assert search > 0.02
    assert abs(fresh) < search / 2
