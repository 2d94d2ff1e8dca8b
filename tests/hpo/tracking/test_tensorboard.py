"""TensorBoard's files, read back with TensorBoard's own reader and its HParams page. No Ray."""

from __future__ import annotations

import errno
import math
import shutil
import time
from typing import Any

import pytest
from curves import controller, learned, report, run_all, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard_files import Status, assert_all_there, hparams_page
from tensorboardX import RecordWriter

from hpo.policy import trial_attributes
from hpo.policy.leaderboard import reports_of
from hpo.policy.retry_policy import FailureAction, TrialFailure
from hpo.store.record import Record
from hpo.tracking.tensorboard import FOLDER, Events, TensorBoard, draw_finished
from model.config import TrainConfig


def test_every_epoch_of_every_trial_is_there_once(record):
    board = TensorBoard(record)
    run_all(controller(record, board))
    board.close()
    assert any(math.isnan(r.ssim) for trial in record.trials() for r in reports_of(trial))
    assert_all_there(record)


def test_the_hparams_page_lists_the_trials_with_what_was_searched_their_ends_and_their_metrics(record):
    board = TensorBoard(record)
    driver = controller(record, board)
    run_all(driver)
    record.update_config({"trials": 9})
    driver.on_trial_failure(
        driver.next_trial().number, TrialFailure(error="out of memory", action=FailureAction.FAIL_TRIAL)
    )
    board.close()
    groups = hparams_page(record.folder / FOLDER)
    assert len(groups) == len(record.trials())
    for trial in record.trials():
        group = groups[f"{trial.number:05}"]
        searched = {name: value.string_value or value.number_value for name, value in group.hparams.items()}
        assert searched == trial.params
        (session,) = group.sessions
        dead = trial.user_attrs.get(trial_attributes.DECISION, {}).get("reason", "failed") in (
            "failed",
            "diverged",
            "collapsed",
        )
        assert session.status == (Status.STATUS_FAILURE if dead else Status.STATUS_SUCCESS)
        shown = {metric.name.tag: (metric.training_step, metric.value) for metric in session.metric_values}
        if reports := reports_of(trial):
            assert shown["val/ssim"] == pytest.approx((len(reports), reports[-1].ssim), nan_ok=True)
            took = sum(report.seconds + report.eval_seconds for report in reports)
            assert session.end_time_secs - session.start_time_secs == pytest.approx(took)


def test_a_search_that_was_killed_and_continued_has_no_epoch_twice_and_none_is_missing(record, runs):
    driver = controller(record, TensorBoard(record))
    train(driver, driver.next_trial().number, [])
    checkpoints = {1: []}
    train(driver, driver.next_trial().number, checkpoints[1], epochs=2)  # killed here: nothing is closed
    (file,) = (record.folder / FOLDER / "00001").iterdir()
    watched = EventAccumulator(str(file.parent)).Reload()  # a TensorBoard that is open all along
    assert [event.step for event in watched.Scalars("val/ssim")] == [1, 2]
    file.write_bytes(file.read_bytes()[:-20])  # the last event cut short
    checkpoints[1].append(learned(TrainConfig.from_dict(record.trial(1).user_attrs[trial_attributes.CONFIG]), 3))

    again = Record(runs, "first")
    board = TensorBoard(again)
    run_all(controller(again, board), checkpoints)
    board.close()
    assert_all_there(again)
    watched.Reload()
    told = reports_of(again.trial(1))
    assert len(told) > 2
    assert [event.step for event in watched.Scalars("val/ssim")] == [report.epoch for report in told]


def test_a_finished_search_can_be_looked_at_afterwards(done):
    draw_finished(done)
    assert_all_there(done)
    files = list((done.folder / FOLDER).glob("*/*"))
    before = [file.stat().st_mtime_ns for file in files]
    draw_finished(done)
    assert [file.stat().st_mtime_ns for file in files] == before
    shutil.rmtree(done.folder / FOLDER / "00007")  # as if it had been killed before it came to the last
    draw_finished(done)
    assert_all_there(done)


def test_a_training_by_hand_has_its_curves_and_goes_on_with_them(tmp_path):
    events = Events(tmp_path / "events")
    events.write([report(1, 0.5)])
    began = time.time()
    events = Events(tmp_path / "events")
    reports = [report(1, 0.5, seconds=20.0)]
    events.write(reports)
    reports.append(report(2, 0.6, seconds=30.0, eval_seconds=3.0))
    events.write(reports)  # before it is closed
    first, second = EventAccumulator(str(tmp_path / "events")).Reload().Scalars("val/ssim")
    assert (first.step, first.value, second.step, second.value) == pytest.approx((1, 0.5, 2, 0.6))
    assert began <= first.wall_time <= time.time()
    assert second.wall_time - first.wall_time == pytest.approx(33)


def test_a_disk_that_is_full_is_not_passed_over(record, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RecordWriter, "flush", full)
    with pytest.raises(OSError, match="No space left"):
        run_all(controller(record, TensorBoard(record)))
