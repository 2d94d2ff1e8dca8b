"""Trials whose node is taken move, uncharged; those that wait say for what; a drought of spot nodes is bridged."""

from __future__ import annotations

from curves import conductor, train
from optuna.trial import TrialState

from hpo.conductor import MOVES
from hpo.deaths import DRAINED, Death, death_of
from hpo.decide import FAILURES
from hpo.decide import MOVES as MOVED
from hpo.record import Record

MOVE = Death(error="its node is drained (spot)", then="move")


class PreemptedError(Exception):
    """As Ray's RayActorError."""

    preempted = True


def test_a_preempted_trial_is_no_failure_whatever_else_its_error_says():
    assert death_of(PreemptedError("its worker process has died"), oom_kills=1) == Death(error=DRAINED, then="move")


def test_a_trial_that_moves_comes_next_and_has_all_its_attempts_left(record):
    driver = conductor(record)
    driver.next_trial()
    for _ in range(5):
        driver.stumbled(0, MOVE)
        assert driver.next_trial().number == 0
    for _ in range(2):
        driver.stumbled(0, Death(error="its process died", then="again"))
        assert driver.next_trial().number == 0
    train(driver, 0, [])
    trial = record.trial(0)
    assert trial.state.is_finished()
    assert trial.state != TrialState.FAIL
    assert (len(trial.user_attrs[MOVED]), len(trial.user_attrs[FAILURES])) == (5, 2)


def test_a_trial_does_not_move_for_ever(record):
    driver = conductor(record)
    for _ in range(MOVES):
        assert driver.next_trial().number == 0
        driver.stumbled(0, MOVE)
    assert record.trial(0).state == TrialState.FAIL
    assert record.trial(0).user_attrs["error"]["text"] == f"moved {MOVES} times, at last: {MOVE.error}"
    assert driver.next_trial().number == 1


def test_when_money_is_up_nothing_is_taken_up(record, runs):
    conductor(record).next_trial()
    driver = conductor(Record(runs, "first"))
    driver._money_is_up = lambda: True
    assert driver.next_trial() is None
    assert driver.trials_left == 8
