"""Leaderboard and winner."""

from __future__ import annotations

import json
import math

import pytest
from curves import SPACE, report

from hpo import results
from hpo.config import SearchConfig
from hpo.decide import DECISION, Decision, judge, suggest
from hpo.record import Record

OBJECTIVE = "ssim"


@pytest.fixture
def record(runs) -> Record:
    """Trials with an end of every kind, none in the order of its quality."""
    search = SearchConfig(trials=7, epochs=3, scheduler="none", objective=OBJECTIVE, final_epochs=2)
    record = Record.create(runs, "first", search)
    told = {
        0: [0.5, 0.6, 0.55],  # complete; best in epoch 2
        1: [0.7],  # pruned
        2: [0.9],  # failed
        3: [0.95, math.nan],  # diverged
        4: [0.65, 0.65, 0.65],  # complete; its best checkpoint is the last of equals
        5: [],
        6: [0.8],  # running
    }
    for number, values in told.items():
        record.add(suggest(record.trials(), SPACE, search))
        for epoch, value in enumerate(values, start=1):
            record.add_report(number, report(epoch, value))
    record.end(1, Decision(action="prune", reason="asha", epoch=1, value=0.7))
    record.fail(2, "its node is gone")
    record.end(3, judge(record.trials(), 3, 2, search))
    for number in (0, 4):
        record.end(number, judge(record.trials(), number, 3, search))
    return record


def test_the_leaderboard_is_in_the_order_of_the_best_epochs(record):
    board = results.leaderboard(record.trials(), OBJECTIVE)
    assert [(r["number"], r["value"], r["best_epoch"]) for r in board] == [
        (3, 0.95, 1),
        (2, 0.9, 1),
        (6, 0.8, 1),
        (1, 0.7, 1),
        (4, 0.65, 3),
        (0, 0.6, 2),
        (5, None, None),
    ]
    assert [r["stop_reason"] for r in board] == ["diverged", "error", None, "asha", "finished", "finished", None]
    json.dumps(results.document(record), allow_nan=False)


def test_neither_a_failed_nor_a_diverged_trial_wins(record):
    assert results.finalists(record.trials(), OBJECTIVE) == [6, 1, 4]
    assert results.winner(record) == 6


def test_no_winner_comes_out_of_nothing_valid(runs):
    record = Record.create(runs, "none", SearchConfig(objective=OBJECTIVE))
    assert results.winner(record) is None
    record.add(suggest([], SPACE, record.search))
    record.add_report(0, report(1, math.nan))
    record.end(0, judge(record.trials(), 0, 1, record.search))
    assert results.winner(record) is None


def test_finalists_measured_on_all_validation_images_decide(record):
    record.note(results.FINALISTS, {"6": {"value": 0.70}, "1": {"value": 0.72}, "4": {"value": 0.72}})
    assert results.winner(record) == 1  # of equals, the one with the better reports


def test_finalists_that_were_measured_before_a_better_trial_came_decide_nothing(record):
    record.note(results.FINALISTS, {"1": {"value": 0.72}, "4": {"value": 0.74}, "0": {"value": 0.7}})
    assert results.winner(record) == 6


@pytest.mark.parametrize(
    ("final", "wins"),
    [
        ({"trial": 1, "value": 0.73}, True),
        ({"trial": 1, "value": 0.71}, False),
        ({"trial": 4, "value": 0.99}, False),  # of an earlier winner
        (None, False),
    ],
)
def test_the_final_training_wins_where_it_is_better_than_its_own_trial(record, final, wins):
    record.note(results.FINALISTS, {"6": {"value": 0.5}, "1": {"value": 0.72}, "4": {"value": 0.6}})
    if final:
        record.note(results.FINAL, final)
    assert results.final_wins(record) == wins
    record.change({"final_epochs": 0})
    assert not results.final_wins(record)


def test_a_search_is_over_when_all_that_was_asked_for_has_ended(record):
    assert not results.is_over(record)
    for number in (5, 6):
        record.fail(number, "gone")
    assert results.is_over(record)
    record.change({"trials": 8})
    assert not results.is_over(record)


def test_decisions_taken_again_are_those_on_record(done):
    told = results.decisions(done)
    assert told["rungs"] == (1, 3)
    assert [trial["number"] for trial in told["trials"]] == list(range(8))
    for trial in told["trials"]:
        assert trial["agrees"]
        assert trial["decisions"][-1] == trial["recorded"]
        assert all(decision["action"] == "go on" for decision in trial["decisions"][:-1])
    assert {trial["suggested_by"] for trial in told["trials"]} >= {"starting point", "random"}


def test_a_decision_that_the_record_does_not_bear_out_is_told(done):
    pruned = next(trial for trial in done.trials() if trial.user_attrs[DECISION]["reason"] == "asha")
    done._put(pruned.number, user_attrs={**pruned.user_attrs, DECISION: {**pruned.user_attrs[DECISION], "cutoff": 0.0}})
    assert [trial["number"] for trial in results.decisions(done)["trials"] if not trial["agrees"]] == [pruned.number]
