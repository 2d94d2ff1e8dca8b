"""A real search whose driver is killed again and again, at random instants, and continued by the same command.

Nothing may be lost, nothing may be done twice but the epoch that was under way.
"""

from __future__ import annotations

import random

import pytest
from curves import essence
from drivers import GUARD_SECONDS
from killed_search import (
    Killed,
    assert_nothing_was_lost_or_repeated,
    assert_the_winner_is_what_the_record_says,
    one_thread,
    placed,
    traced,
    undisturbed,
)

from hpo.policy import leaderboard

__all__ = ["one_thread"]  # a fixture


@pytest.mark.timeout(3 * GUARD_SECONDS)
def test_a_search_that_is_killed_four_times_is_the_undisturbed_one(tmp_path, one_thread):
    """While it starts, twice while it trains, and after the last trial."""
    search = Killed(folder=tmp_path, kills=4, slots=1, trials=5, epochs=3, images=256, pruner="asha")
    rng = random.Random(1)
    with traced(tmp_path):
        search.run(0, search.start_up, rng.uniform(0, 8))
        for attempt in (1, 2):
            search.run(attempt, search.epochs_begin(rng.randint(1, 2)), rng.uniform(0, 1.5))
        search.run(3, search.trials_are_over, rng.uniform(0, 3))
    images = placed()
    assert_nothing_was_lost_or_repeated(search)
    assert_the_winner_is_what_the_record_says(search, images)
    plain = undisturbed(search.record.search, tmp_path / "plain", images)
    assert essence(search.record.trials()) == essence(plain.trials())
    boards = [leaderboard.leaderboard(record.trials(), "balanced") for record in (search.record, plain)]
    ranks = [[(row["number"], row["ssim"], row["psnr_db"]) for row in board] for board in boards]
    assert ranks[0] == ranks[1]


@pytest.mark.slow
@pytest.mark.timeout(6 * GUARD_SECONDS)
@pytest.mark.parametrize("slots", [1, 2])
def test_a_search_that_is_killed_twenty_times_loses_and_repeats_nothing(tmp_path, slots, one_thread):
    """Every third time while it starts, else somewhere in the epochs that follow; then it is left alone to its end."""
    search = Killed(folder=tmp_path, kills=20, slots=slots, trials=24, epochs=4, images=512)
    rng = random.Random(slots)
    with traced(tmp_path):
        for attempt in range(search.kills):
            if attempt % 3 == 0:
                search.run(attempt, search.start_up, rng.uniform(0, 15))
            else:
                search.run(attempt, search.epochs_begin(rng.randint(1, 5)), rng.uniform(0, 1.5))
        search.run(search.kills, None)
    assert_nothing_was_lost_or_repeated(search)
    assert_the_winner_is_what_the_record_says(search, placed())
