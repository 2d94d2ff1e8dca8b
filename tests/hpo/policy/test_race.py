"""The race over fresh seeds: what it decides depends on the results alone."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.policy.comparison import ERROR
from hpo.policy.race import Dropped, Replicate, look_errors, run_race

SIZES = {1: 500, 2: 500, 3: 500}


def results(**values: list[float | None]) -> dict[int, list[Replicate | None]]:
    """By finalist: a1=[...]."""
    return {int(n[1:]): [None if v is None else Replicate(value=v) for v in row] for n, row in values.items()}


def test_the_looks_share_the_error_and_the_last_has_half_of_it():
    for seeds in (2, 3, 5, 10):
        errors = look_errors(seeds)
        assert list(errors) == list(range(2, seeds + 1))
        assert sum(errors.values()) == pytest.approx(ERROR)
        assert len(errors) == 1 or errors[seeds] == ERROR / 2
    assert look_errors(1) == {}


def test_a_finalist_that_is_clearly_worse_is_dropped_at_the_first_look():
    race = run_race(results(a1=[28.30, 28.31], a2=[28.30, 28.32], a3=[20.0, 20.01]), 5, SIZES)
    assert race.dropped == {3: Dropped(seeds=2, failures=0, best=2)}
    assert race.left == (1, 2)
    assert race.compared[3].verdict == "worse"
    assert not race.is_over


def test_a_race_with_one_left_is_over():
    race = run_race(results(a1=[28.30, 28.31], a2=[21.0, 21.03], a3=[20.0, 20.01]), 5, SIZES)
    assert (race.left, race.winner, race.is_over, race.seeds) == ((1,), 1, True, 2)


def test_results_that_came_ahead_do_not_count_before_their_turn():
    ahead = results(a1=[28.0, 28.2, None, 30.0], a2=[28.1, None, 27.0, 27.0], a3=[28.2, 28.1, 28.0, 28.0])
    without = results(a1=[28.0], a2=[28.1], a3=[28.2])
    assert run_race(ahead, 4, SIZES) == run_race(without, 4, SIZES)


def test_a_dropped_finalist_is_not_waited_for():
    race = run_race(results(a1=[28.3, 28.31, 28.2], a2=[28.2, 28.32, 28.3], a3=[20.0, 20.01]), 3, SIZES)
    assert race.is_over
    assert race.seeds == 3
    assert race.ties == [1]


def test_training_that_fails_ends_a_finalist_unless_all_fail():
    some = results(a1=[28.3, 28.1], a2=[28.4, 28.5], a3=[28.0, 28.2])
    some[2][1] = Replicate(value=20.55, failed=True)
    race = run_race(some, 3, SIZES)
    assert race.dropped == {2: Dropped(seeds=2, failures=1)}
    for row in some.values():
        row[1] = Replicate(value=20.55, failed=True)
    assert run_race(some, 3, SIZES).dropped == {}


def test_the_first_seed_alone_drops_only_what_failed():
    first = results(a1=[28.3], a2=[1.0], a3=[28.0])
    assert run_race(first, 3, SIZES).left == (1, 2, 3)
    first[2] = [Replicate(value=1.0, failed=True)]
    assert run_race(first, 3, SIZES).left == (1, 3)


def test_a_tie_goes_to_the_smaller_one_and_what_is_worse_never_wins():
    tied = results(a1=[28.31, 28.25, 28.3], a2=[28.25, 28.3, 28.28], a3=[20.0, 20.1, 20.0])
    race = run_race(tied, 3, {1: 900, 2: 500, 3: 10})
    assert (race.best, race.winner) == (1, 2)
    assert run_race(tied, 3, SIZES).winner == 1


def test_a_race_without_results_has_no_winner():
    assert run_race(results(a1=[], a2=[]), 3, SIZES).winner is None
    assert run_race(results(a1=[28.0, 28.1]), 3, SIZES).winner == 1


VALUES = st.lists(st.floats(15, 35), min_size=4, max_size=4)


@given(st.lists(VALUES, min_size=1, max_size=4), st.integers(1, 4), st.integers(0, 4))
def test_whatever_the_results_the_race_ends_with_one_of_those_left(rows, seeds, known):
    trained = {n: [Replicate(value=v) for v in row[:seeds]] for n, row in enumerate(rows)}
    sizes = {n: 100 + n for n in trained}
    race = run_race(trained, seeds, sizes)
    assert race.is_over
    assert race.winner in race.left
    assert race.best in race.left
    assert set(race.left) | set(race.dropped) == set(trained)
    assert all(not math.isnan(c.low) for c in race.compared.values())
    part = {n: row[: min(known, seeds)] for n, row in trained.items()}
    early = run_race(part, seeds, sizes)
    assert early.dropped.items() <= race.dropped.items()  # what was decided stays, after a restart too
