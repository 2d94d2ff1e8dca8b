"""Whole searches without Ray, on synthetic learning curves: undisturbed, and killed at every single step."""

from __future__ import annotations

import pytest
from curves import FixedBudget, controller, learned, report, run_all, story, train
from killed import Killed, every_write_killed_once
from optuna.trial import FrozenTrial, TrialState

from hpo.policy import leaderboard, report_decision, trial_attributes
from hpo.policy.retry_policy import FailureAction, TrialFailure
from hpo.policy.search_config import SearchConfig
from hpo.policy.trial_attributes import CONFIG
from hpo.store.record import Record
from model.common.errors import MachineError
from model.config import TrainConfig
from model.training_report import EvalReport
from search_spaces import Space


class Listening:
    """Hears everything, or only the last call of each trial."""

    def __init__(self) -> None:
        self.calls: list[FrozenTrial] = []

    def on_trial_update(self, trial: FrozenTrial) -> None:
        self.calls.append(trial)

    def close(self) -> None:
        """Nothing to do."""

    def last(self) -> list[FrozenTrial]:
        return sorted({trial.number: trial for trial in self.calls}.values(), key=lambda trial: trial.number)


def test_the_synthetic_search_has_trials_of_every_end(undisturbed):
    """Or the tests below would compare less than they seem to."""
    reasons = {trial.user_attrs[trial_attributes.DECISION]["reason"] for trial in undisturbed.trials()}
    assert reasons == {"finished", "asha", "diverged"}
    assert len(undisturbed.trials()) == 8


def test_equal_seeds_give_equal_searches(undisturbed, record, runs):
    run_all(controller(record))
    assert story(record.trials()) == story(undisturbed.trials())
    assert leaderboard.leaderboard(record.trials(), "ssim") == leaderboard.leaderboard(undisturbed.trials(), "ssim")
    other = Record.create(runs, "other", SearchConfig(**{**record.search.as_dict(), "seed": 4}))
    run_all(controller(other))
    assert story(other.trials())[2:] != story(record.trials())[2:]


def test_a_search_that_dies_after_every_step_is_the_undisturbed_one(undisturbed, record, runs):
    """After every suggestion, every report, and every checkpoint whose report is never heard."""
    checkpoints: dict[int, list[EvalReport]] = {}
    while (suggested := controller(Record(runs, "first")).next_trial()) is not None:
        reports = checkpoints.setdefault(suggested.number, [])
        reports.append(learned(TrainConfig.from_dict(suggested.user_attrs[CONFIG]), len(reports) + 1))
        reborn = controller(Record(runs, "first"))
        assert reborn.next_trial().number == suggested.number
        reborn.on_report(suggested.number, reports)
    assert story(Record(runs, "first").trials()) == story(undisturbed.trials())


def test_a_search_that_dies_at_every_write_is_the_undisturbed_one(undisturbed, record, runs):
    """Each transaction of the record is lost once before it succeeds."""
    checkpoints: dict[int, list[EvalReport]] = {}
    with every_write_killed_once() as kills:
        done = False
        while not done:
            try:
                run_all(controller(Record(runs, "first")), checkpoints)
                done = True
            except Killed:
                continue
    epochs = sum(len(trial.intermediate_values) for trial in undisturbed.trials())
    assert len(kills - {""}) == 8 + epochs  # each trial, and each report with what became of it
    assert story(Record(runs, "first").trials()) == story(undisturbed.trials())


def test_reports_that_only_the_checkpoint_has_are_taken_over(undisturbed, record):
    trial = controller(record).next_trial()
    reports = [learned(TrainConfig.from_dict(trial.user_attrs[CONFIG]), epoch) for epoch in (1, 2, 3, 4)]
    driver = controller(record)
    assert driver.on_report(0, reports[:1]).reason == "passed"
    assert driver.on_report(0, reports).reason == "finished"
    assert story(record.trials()) == story(undisturbed.trials())[:1]


def test_a_checkpoint_beyond_the_rung_that_stops_the_trial_is_not_followed(record):
    """Its driver died before the decision; the decision is the rung's, whatever came after."""
    driver = controller(record)
    first, second = driver.next_trial(), driver.next_trial()
    driver.on_report(first.number, [report(1, 0.8)])
    decision = driver.on_report(second.number, [report(1, 0.5), report(2, 0.9)])
    assert (decision.action, decision.epoch) == ("prune", 1)
    assert record.trial(1).intermediate_values == {1: 0.5}
    assert record.trial(1).state == TrialState.PRUNED


def test_a_trial_that_has_ended_gets_the_same_answer_again_whatever_came_after(undisturbed):
    before = story(undisturbed.trials())
    for trial in undisturbed.trials():
        reports = leaderboard.reports_of(trial)
        for late in ([], [report(len(reports) + 1, 0.99)]):
            decision = controller(undisturbed).on_report(trial.number, [*reports, *late])
            assert decision == report_decision.Decision(**trial.user_attrs[trial_attributes.DECISION])
    assert story(undisturbed.trials()) == before


def test_when_time_is_up_unfinished_trials_still_run_and_no_new_one_begins(record, runs):
    started = [controller(record).next_trial().number]
    late = controller(Record(runs, "first"), budget=FixedBudget(new_trials=False))
    started.append(late.next_trial().number)
    assert started == [0, 0]
    assert late.next_trial() is None
    assert len(record.trials()) == 1


def test_several_slots_get_different_trials_and_all_unfinished_ones_come_first(record, runs):
    driver = controller(record)
    assert [driver.next_trial().number for _ in range(3)] == [0, 1, 2]
    driver.on_trial_failure(1, TrialFailure(error="out of memory", action=FailureAction.FAIL_TRIAL))
    reborn = controller(Record(runs, "first"))
    assert reborn.trials_left == 8 - 1
    assert [reborn.next_trial().number for _ in range(3)] == [0, 2, 3]
    assert len({str(trial.params) for trial in reborn.record.trials()}) == 4


def test_a_space_without_another_configuration_ends_the_search(runs):
    space = Space(
        name="two", suggest=lambda trial, base: TrainConfig(width=trial.suggest_int("width", 1, 2)), starting_points=()
    )
    record = Record.create(runs, "small", SearchConfig(trials=5, epochs=2, objectives=("ssim",)))
    run_all(controller(record, space=space))
    assert sorted(trial.params["width"] for trial in record.trials()) == [1, 2]


def test_a_listener_that_heard_only_the_last_call_knows_everything(record):
    listening = Listening()
    run_all(controller(record, listening))
    assert story(listening.last()) == story(record.trials())


def test_a_listener_of_a_continued_search_hears_of_the_trials_before_it(undisturbed, record):
    listening = Listening()
    controller(undisturbed, listening)
    assert story(listening.calls) == story(undisturbed.trials())


def test_what_a_listener_hears_is_on_the_record_already(record, runs):
    class Checking(Listening):
        def on_trial_update(self, trial: FrozenTrial) -> None:
            super().on_trial_update(trial)
            assert story([Record(runs, "first").trials()[trial.number]]) == story([trial])

    checking = Checking()
    record.update_config({"trials": 3})
    run_all(controller(record, checking))
    epochs = sum(len(trial.intermediate_values) for trial in record.trials())
    assert len(checking.calls) == 3 + epochs  # an epoch that ends a trial is told once


def test_a_search_whose_trials_all_fail_before_their_first_epoch_stops(record, runs):
    """And goes on by the same command, once what they fail of is mended."""
    broken = TrialFailure(error="no such file", action=FailureAction.FAIL_TRIAL)
    driver = controller(record)
    for number in range(2):
        driver.next_trial()
        driver.on_trial_failure(number, broken)
    driver.next_trial()
    with pytest.raises(MachineError, match="3 trials failed and none finished an epoch; the last one: no such file"):
        driver.on_trial_failure(2, broken)
    run_all(controller(Record(runs, "first")))
    states = [trial.state.name for trial in Record(runs, "first").trials()]
    assert states[:3] == ["FAIL"] * 3
    assert "FAIL" not in states[3:]
    assert len(states) == 8


def test_a_search_goes_on_where_some_trials_fail_and_others_do_not(record):
    driver = controller(record)
    train(driver, driver.next_trial().number, [], epochs=1)
    for number in range(1, 6):
        driver.next_trial()
        driver.on_trial_failure(number, TrialFailure(error="out of memory", action=FailureAction.FAIL_TRIAL))
    assert driver.next_trial().number == 6
