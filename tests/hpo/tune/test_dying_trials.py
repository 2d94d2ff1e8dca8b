"""Trials that die are taken up again from their last epoch, counted, and given up when it is no use."""

from __future__ import annotations

import errno
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dying_search
import pytest
import torch
from curves import controller, report, story, train
from drivers import GUARD_SECONDS, driver
from optuna.trial import FrozenTrial, TrialState

from hpo.policy import leaderboard, trial_attributes
from hpo.policy.retry_policy import FailureAction, TrialFailure, classify_failure, kernel_oom_kills
from hpo.store.record import Record
from hpo.tune import hang_watchdog
from hpo.tune.errors import FatalDriverError, propagate_errors
from hpo.tune.hang_watchdog import HangWatchdog, TrialTiming, find_hung
from hpo.tune.searcher import ControllerSearcher
from model.common.errors import ConfigError
from model.config import TrainConfig
from model.data.data_config import DataConfig
from model.data.device_images import DeviceImages
from model.trainer import SEARCH_VALIDATION_IMAGES
from model.training_report import EvalReport
from model.training_run import TrainingRun

pytestmark = pytest.mark.timeout(2 * GUARD_SECONDS)


# --- a real search --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Searched:
    record: Record
    output: str

    def trial(self, number: int) -> FrozenTrial:
        return self.record.trial(number)

    def deaths(self, number: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.trial(number).user_attrs.get(trial_attributes.FAILURES, [])
        return found

    def epochs_begun(self, number: int) -> list[int]:
        text = (self.record.trial_folder(number) / dying_search.EPOCHS).read_text()
        return [int(epoch) for epoch in text.split()]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Searched:
    folder = tmp_path_factory.mktemp("dying")
    with driver(folder, [], (sys.executable, dying_search.__file__, str(folder))) as running:
        _, errors = running.process.communicate(timeout=GUARD_SECONDS)
        assert running.process.returncode == 0, errors
        assert running.left_after(seconds=10) == []
    return Searched(Record(folder, "first"), errors)


@pytest.fixture(scope="module")
def trained_in_one_go(searched: Searched, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    """What trial KILLED would have reported."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as its trial had: sums of other lengths round differently
    placed = DeviceImages.to_device(
        DataConfig().load(), "gaussian:30", torch.device("cpu"), num_validation=SEARCH_VALIDATION_IMAGES
    )
    config = TrainConfig.from_dict(searched.trial(dying_search.KILLED).user_attrs[trial_attributes.CONFIG])
    run = TrainingRun(config, placed, tmp_path_factory.mktemp("undisturbed"), "balanced")
    for _ in range(config.epochs):
        run.run_epoch()
    torch.set_num_threads(before)
    return [measured(r) for r in run.reports]


def measured(report: Any) -> dict[str, float]:
    return {name: value for name, value in report.as_dict().items() if "seconds" not in name}


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (dying_search.KILLED, "its worker process has died"),
        (dying_search.HUNG, "hung: no report for "),
        (dying_search.NODE_LOST, ""),
    ],
)
def test_a_trial_that_died_is_taken_up_from_its_last_epoch(searched, number, error):
    assert searched.trial(number).state == TrialState.COMPLETE
    assert searched.epochs_begun(number) == [1, 2, 2, 3]
    (death,) = searched.deaths(number)
    assert death["epoch"] == 1
    assert error in death["error"]
    assert f"trial {number}: failed after epoch 1, retrying from there: {death['error']}" in searched.output


def test_an_epoch_that_was_trained_and_not_told_is_not_trained_again(searched):
    assert searched.trial(dying_search.KILLED_LATE).state == TrialState.COMPLETE
    assert searched.epochs_begun(dying_search.KILLED_LATE) == [1, 2, 3]
    assert len(searched.deaths(dying_search.KILLED_LATE)) == 1


def test_it_ends_where_an_undisturbed_one_ends(searched, trained_in_one_go):
    assert [measured(r) for r in leaderboard.reports_of(searched.trial(dying_search.KILLED))] == trained_in_one_go


def test_out_of_memory_is_told_apart_and_not_tried_again(searched):
    trial = searched.trial(dying_search.OUT_OF_MEMORY)
    assert trial.state == TrialState.FAIL
    assert searched.epochs_begun(trial.number) == [1, 2]
    error = trial.user_attrs[trial_attributes.ERROR]["text"]
    assert error.startswith("out of memory: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB.")
    assert f"trial {trial.number}: failed after epoch 1, giving up: {error}" in searched.output


def test_a_trial_that_keeps_dying_is_given_up_after_three_attempts_and_the_search_goes_on(searched):
    trial = searched.trial(dying_search.DOOMED)
    assert trial.state == TrialState.FAIL
    assert searched.epochs_begun(trial.number) == [1, 2, 2, 2]
    assert len(searched.deaths(trial.number)) == 3
    assert trial.user_attrs[trial_attributes.ERROR]["text"].startswith("died 3 times, at last: ")
    assert searched.trial(dying_search.HEALTHY).state == TrialState.COMPLETE
    assert searched.deaths(dying_search.HEALTHY) == []


def test_each_trial_saw_the_gpu_that_ray_assigned_a_quarter_of_and_no_other(searched):
    folders = [searched.record.trial_folder(trial.number) for trial in searched.record.trials()]
    assert [(folder / dying_search.GPUS).read_text() for folder in folders] == ["0"] * len(folders)


# --- the decisions --------------------------------------------------------------------------------------------------


class RaisedError(Exception):
    """As Ray's RayTaskError: the remote traceback as text, and the cause."""

    def __init__(self, cause: BaseException, text: str) -> None:
        super().__init__(f"ray::Pix2PixTrial.train() (pid=1)\n  File 'x.py', line 1, in step\n{text}")
        self.cause = cause


WORKER_DIED = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: Pix2PixTrial\n\tpid: 1\n"
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: "
    "Worker unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the "
    "process was killed by the OOM killer due to high memory usage, (2) ray stop --force was called."
)
MONITOR = "1 worker(s) were killed due to the node running low on memory. Memory on the node was ...\nmany\nmore lines"


@pytest.mark.parametrize(
    ("error", "oom_kills", "action", "text"),
    [
        (f"{WORKER_DIED}\n \n", 0, FailureAction.RETRY, "its worker process has died"),
        (WORKER_DIED, 1, FailureAction.FAIL_TRIAL, "out of memory: the kernel killed it; "),
        (
            MONITOR,
            0,
            FailureAction.FAIL_TRIAL,
            "out of memory: 1 worker(s) were killed due to the node running low on memory; ",
        ),
        (RaisedError(MemoryError(), "MemoryError"), 0, FailureAction.FAIL_TRIAL, "out of memory: MemoryError; "),
        (
            RaisedError(RuntimeError("x"), "RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried"),
            0,
            FailureAction.FAIL_TRIAL,
            "out of memory: RuntimeError: DefaultCPUAllocator",
        ),
        (
            RaisedError(ConfigError("no GPU"), "hpo.tune.trainable.ConfigError: no GPU"),
            0,
            FailureAction.FAIL_TRIAL,
            "hpo.tune.trainable.ConfigError: no GPU",
        ),
        (RaisedError(ValueError("a\nb"), "ValueError: a\nb"), 0, FailureAction.RETRY, "ValueError: a"),
        (
            RaisedError(OSError(errno.ENOSPC, "No space left on device", "/runs/x"), "OSError: [Errno 28] No space"),
            0,
            FailureAction.ABORT_SEARCH,
            "disk full at /runs/x; ",
        ),
        (
            RaisedError(OSError(errno.EIO, ""), "OSError: [Errno 5] Input/output error"),
            0,
            FailureAction.RETRY,
            "OSError: [Errno 5]",
        ),
        (RaisedError(ValueError("x"), "ValueError: x"), 1, FailureAction.RETRY, "ValueError: x"),
    ],
)
def test_what_a_trial_died_of(error, oom_kills, action, text):
    death = classify_failure(error, oom_kills=oom_kills)
    assert death.action is action
    assert death.error.startswith(text)


def test_the_kernels_kills_are_read_from_its_own_count(monkeypatch):
    files = {"/proc/vmstat": "drop_pagecache 1\noom_kill 31\noom_killed 7\n"}
    monkeypatch.setattr(Path, "read_text", lambda path: files[str(path)])
    assert kernel_oom_kills() == 31


def test_a_trial_hangs_when_it_is_silent_for_ten_of_its_own_epochs_and_at_least_a_minute():
    paces = {0: TrialTiming(100, 30.0), 1: TrialTiming(100, 1.0), 2: TrialTiming(100)}
    assert find_hung(paces, None, 160) == {}
    assert find_hung(paces, None, 161) == {1: "hung: no report for 60 s"}
    assert find_hung(paces, None, 401).keys() == {0, 1}
    assert find_hung(paces, None, 701).keys() == {0, 1, 2}


def test_before_its_first_epoch_a_trial_is_measured_by_the_first_ones_of_others():
    assert find_hung({2: TrialTiming(100)}, 8.0, 180) == {}
    assert find_hung({2: TrialTiming(100)}, 8.0, 181) == {2: "hung: no report for 80 s"}


@dataclass
class Watched:
    """A watch over trials that exist only here, with a clock to be set."""

    monkeypatch: pytest.MonkeyPatch
    now: float = 0.0
    is_away: bool = False
    killed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.monkeypatch.setattr(hang_watchdog.ray, "kill", self.killed.append)
        self.watch = HangWatchdog(clock=lambda: self.now, is_away=lambda: self.is_away)
        self.trials = [self.trial(0), self.trial(1)]

    def trial(self, number: int) -> Any:
        state = SimpleNamespace(ray_actor=f"actor of {number}")
        return SimpleNamespace(config={"number": number}, status="RUNNING", temporary_state=state)

    def look(self, until: float) -> None:
        while self.now < until:
            self.now += 1
            self.watch.on_step_end(0, self.trials)

    def reports(self, number: int, *reports: Any, step_seconds: float = 0.0) -> None:
        result = {"reports": [report.as_dict() for report in reports], "step_seconds": step_seconds}
        self.watch.on_trial_result(0, self.trials, self.trials[number], result)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


def test_a_trial_that_falls_silent_is_killed_once_and_the_other_goes_on(watched):
    for trial in watched.trials:
        watched.watch.on_trial_start(0, watched.trials, trial)
    watched.look(until=5)
    for number in (0, 1):
        watched.reports(number, report(1, 0.5))
    for epoch in range(2, 30):
        watched.look(until=5 * epoch)
        watched.reports(1, *(report(e, 0.5) for e in range(1, epoch + 1)))
    assert watched.killed == ["actor of 0"]
    assert watched.watch.hung == {0: "hung: no report for 60 s"}


def test_what_a_resumed_trial_says_at_once_is_no_measure_of_its_epochs(watched):
    """Its checkpoint knows how long they took: ten minutes each."""
    watched.watch.on_trial_start(0, watched.trials, watched.trials[0])
    watched.reports(0, report(1, 0.5, seconds=500.0, eval_seconds=100.0))
    watched.look(until=5_999)
    assert watched.killed == []
    watched.look(until=6_002)
    assert watched.killed == ["actor of 0"]


def test_a_driver_that_was_stopped_itself_blames_nobody(watched):
    """Ctrl-Z, and fg an hour later: what the trials reported meanwhile is not read yet."""
    watched.watch.on_trial_start(0, watched.trials, watched.trials[0])
    watched.reports(0, report(1, 0.5))
    watched.now += 3_600
    watched.look(until=watched.now + 50)
    assert watched.killed == []
    watched.look(until=watched.now + 12)
    assert watched.killed == ["actor of 0"]


def test_what_an_epochs_files_take_on_their_way_is_of_its_time_and_nobody_hangs_while_the_storage_is_away(watched):
    watched.watch.on_trial_start(0, watched.trials, watched.trials[0])
    watched.reports(0, report(1, 0.5), step_seconds=30.0)
    watched.look(until=299)
    watched.is_away = True
    watched.look(until=1_000)
    watched.is_away = False
    watched.look(until=1_001)
    assert watched.killed == []
    watched.look(until=1_003)
    assert watched.killed == ["actor of 0"]


def test_a_trial_that_ended_or_died_is_not_waited_for(watched):
    for trial in watched.trials:
        watched.watch.on_trial_start(0, watched.trials, trial)
    watched.watch.on_trial_complete(0, watched.trials, watched.trials[0])
    watched.watch.on_trial_error(0, watched.trials, watched.trials[1])
    watched.look(until=2 * hang_watchdog.UNKNOWN_SECONDS)
    assert watched.killed == []


# --- what the search makes of it ------------------------------------------------------------------------------------

AGAIN = TrialFailure(error="its process died", action=FailureAction.RETRY)


def test_a_trial_that_died_comes_next_and_no_other_is_lost(record, runs):
    """Two trials wait to be continued, and others to be begun."""
    before = controller(record)
    assert [before.next_trial().number for _ in range(2)] == [0, 1]
    driver = controller(Record(runs, "first"))
    assert driver.next_trial().number == 0
    driver.on_trial_failure(0, AGAIN)
    assert [driver.next_trial().number for _ in range(3)] == [0, 1, 2]


def test_deaths_are_counted_over_restarts_of_the_driver(record, runs):
    for _ in range(3):
        driver = controller(Record(runs, "first"))
        trial = driver.next_trial()
        assert (trial.number, trial.state) == (0, TrialState.RUNNING)
        driver.on_trial_failure(0, AGAIN)
    assert Record(runs, "first").trial(0).state == TrialState.FAIL


def test_deaths_change_no_decision(record, undisturbed):
    """Every trial dies once, after its first epoch."""
    driver = controller(record)
    checkpoints: dict[int, list[EvalReport]] = {}
    while (trial := driver.next_trial()) is not None:
        died_before = trial_attributes.FAILURES in trial.user_attrs
        train(driver, trial.number, checkpoints.setdefault(trial.number, []), None if died_before else 1)
        if trial_attributes.is_unfinished(record.trial(trial.number)):
            driver.on_trial_failure(trial.number, AGAIN)
    for trial in record.trials():
        trial.user_attrs.pop(trial_attributes.FAILURES, None)
    assert story(record.trials()) == story(undisturbed.trials())


def test_the_search_is_not_over_while_a_running_trial_may_come_back(record):
    record.update_config({"trials": 1})
    driver = controller(record)
    searcher = ControllerSearcher(driver, lambda trial: {"number": trial.number})
    assert searcher.suggest("a") == {"number": 0}
    assert searcher.suggest("b") is None
    driver.on_trial_failure(0, AGAIN)
    assert searcher.suggest("c") == {"number": 0}
    driver.on_trial_failure(0, TrialFailure(error="out of memory", action=FailureAction.FAIL_TRIAL))
    assert searcher.suggest("d") == ControllerSearcher.FINISHED


def test_a_failure_must_reach_the_scheduler_before_the_searcher(record):
    """The controller relies on this order of Ray's."""
    driver = controller(record)
    searcher = ControllerSearcher(driver, lambda trial: {"number": trial.number})
    searcher.suggest("a")
    with pytest.raises(FatalDriverError):
        searcher.on_trial_complete("a", error=True)
    searcher.suggest("b")
    driver.on_trial_failure(1, AGAIN)
    searcher.on_trial_complete("b", error=True)


def test_an_error_of_the_driver_is_not_taken_for_one_of_the_trial():
    """Ray Tune handles every Exception of the methods that it calls."""

    @propagate_errors
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(FatalDriverError) as carrier:
        full()
    assert not isinstance(carrier.value, Exception)
    assert isinstance(carrier.value.error, OSError)
