"""Where the slots' time went: examples that were worked out by hand."""

from __future__ import annotations

import pytest

from hpo.tune.scheduler import Step, overhead


def test_an_idle_gap_is_overhead():
    # Trial 0 works from 10 to 14 and 15 to 19, trial 1 starts at 20: 8 of 10 seconds were work.
    found = overhead([Step(0, 10, 14), Step(0, 15, 19), Step(1, 20, 26)], slots=1, began=3)
    assert found.share == pytest.approx(0.2)
    assert found.setup_seconds == 7  # from the start of the search to the first trial's
    assert found.tail_seconds == 6  # the last trial's own time, with no other to start


def test_an_idle_slot_is_overhead():
    # Until the last start at 10: slot one works for 10 seconds, slot two for 5.
    found = overhead([Step(0, 0, 10), Step(1, 0, 5), Step(2, 10, 14)], slots=2, began=0)
    assert found.share == pytest.approx(0.25)


def test_work_after_the_last_start_is_tail_and_no_overhead():
    # Trial 0 goes on to 30 while trial 1, started at 10, ends at 12: a slot is empty from then on, for want of trials.
    found = overhead([Step(0, 0, 30), Step(1, 10, 12)], slots=1, began=0)
    assert (found.share, found.tail_seconds) == (0, 20)


def test_a_busy_search_has_no_overhead():
    steps = [Step(number, 5 * number, 5 * number + 5) for number in range(4)]
    assert overhead(steps, slots=1, began=0).share == 0


def test_a_trial_that_was_taken_up_again_counts_from_its_first_start():
    # Reported from 0 to 4 and, after its process died, again from 8 to 10; trial 1 started in between.
    found = overhead([Step(0, 0, 4), Step(1, 5, 7), Step(0, 8, 10)], slots=1, began=0)
    assert found.share == pytest.approx(0.2)
    assert found.tail_seconds == 5


@pytest.mark.parametrize("steps", [[], [Step(0, 0, 4), Step(0, 5, 9)], [Step(0, 1, 4), Step(1, 1, 3)]])
def test_before_two_starts_there_is_nothing_to_measure(steps):
    assert overhead(steps, slots=2, began=0) is None
