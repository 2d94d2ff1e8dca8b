"""Any history of a search, driver killed at any write, beside a plain model of what must have become of it."""

from __future__ import annotations

import math
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from curves import SPACE, controller, learned
from decisions import trials_as_of_suggestion
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from killed import Killed, killed_at_write
from optuna.trial import TrialState

from hpo.policy import report_decision, suggestions, trial_attributes
from hpo.policy.leaderboard import reports_of
from hpo.policy.retry_policy import ABORT_AFTER_FAILURES, MAX_ATTEMPTS, MAX_MIGRATIONS
from hpo.policy.search_config import SearchConfig
from hpo.store.record import Record
from hpo.tune.errors import FatalDriverError
from hpo.tune.hang_watchdog import HangWatchdog
from hpo.tune.scheduler import ControllerScheduler
from hpo.tune.searcher import ControllerSearcher
from model.config import TrainConfig
from model.training_report import EvalReport

SEARCH = SearchConfig(trials=9, epochs=4, reduction_factor=2, objectives=("ssim",), seed=3, set={"width": 4})
SLOTS = 3


class Model:
    """What a search is, in plain lists."""

    def __init__(self) -> None:
        self.heard: dict[int, list[float]] = {}  # reports of each trial, in the order of their suggestion
        self.ends: dict[int, str] = {}
        self.deaths: dict[int, int] = {}

    def on_report(self, number: int, value: float, diverged: bool) -> bool:
        """Whether the trial goes on."""
        self.heard[number].append(value)
        epoch = len(self.heard[number])
        alive = [v for n, v in self.heard.items() if v and (n == number or self.ends.get(n) != "diverged")]
        rivals = sorted(-values[epoch - 1] for values in alive if len(values) >= epoch)
        places = max(1, int(len(alive) / (SEARCH.reduction_factor * epoch**0.3)))
        if diverged:
            self.ends[number] = "diverged"
        elif epoch == SEARCH.epochs:
            self.ends[number] = "finished"
        elif -value > rivals[min(places, len(rivals)) - 1] + 0.001:
            self.ends[number] = "asha"
        return number not in self.ends

    def die(self, number: int, *, for_good: bool) -> None:
        self.deaths[number] = self.deaths.get(number, 0) + 1
        if for_good or self.deaths[number] >= MAX_ATTEMPTS:
            self.ends[number] = "error"

    def is_hopeless(self) -> bool:
        """A trial failed just now, as those before it, and none ever reported."""
        return list(self.ends.values()).count("error") >= ABORT_AFTER_FAILURES and not any(self.heard.values())


class AnyHistory(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        Record.create(self.folder, "first", SEARCH)
        self.model = Model()
        self.checkpoints: dict[int, list[EvalReport]] = {}
        self.was_finished: set[int] = set()
        self.start()

    def start(self) -> None:
        """A driver, and Ray with empty hands. What the checkpoints have and the study lacks is not judged yet."""
        record = Record(self.folder, "first")
        driver = controller(record)
        self.record = record
        self.searcher = ControllerSearcher(driver, lambda trial: {"number": trial.number})
        cluster: Any = SimpleNamespace(is_alive=lambda: True)
        self.preemption: Any = SimpleNamespace(migrated={}, was_drained=lambda number: number in self.drained)
        self.drained: set[int] = set()
        self.scheduler = ControllerScheduler(driver, cluster, HangWatchdog(), self.preemption)
        self.running: list[int] = []
        self.told_finished = False

    # --- what Ray does ---------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.running) < SLOTS)
    @rule()
    def a_slot_is_free(self) -> None:
        answer = self.searcher.suggest("")
        unfinished = [n for n in self.model.heard if n not in self.model.ends and n not in self.running]
        if not isinstance(answer, dict):
            assert not unfinished
            assert len(self.model.heard) == SEARCH.trials
            assert (answer is None) == bool(self.running)
            return
        number = answer["number"]
        assert (number in unfinished) if unfinished else (number == len(self.model.heard))
        self.asked(number)
        self.running.append(number)

    @precondition(lambda self: self.running)
    @rule(slot=st.integers(0, SLOTS - 1))
    def a_trial_trains_and_reports(self, slot: int) -> None:
        number = self.trained(slot)
        goes_on = self.expected(number)
        answer = self.scheduler.on_trial_result(None, self.ray_trial(number), self.result(number))
        assert answer == ("CONTINUE" if goes_on else "STOP")
        if not goes_on:
            self.running.remove(number)

    @precondition(lambda self: self.running)
    @rule(slot=st.integers(0, SLOTS - 1), trained=st.booleans(), memory=st.booleans())
    def a_trial_dies(self, slot: int, trained: bool, memory: bool) -> None:
        number = self.trained(slot) if trained else self.running[slot % len(self.running)]
        self.running.remove(number)
        self.model.die(number, for_good=memory)
        trial = self.ray_trial(number)
        Path(trial.error_file).write_text("MemoryError" if memory else "The actor died unexpectedly")
        if self.model.is_hopeless():
            with pytest.raises(FatalDriverError):
                self.scheduler.on_trial_error(None, trial)
            self.start()
        else:
            self.scheduler.on_trial_error(None, trial)

    @precondition(lambda self: self.running)
    @rule(slot=st.integers(0, SLOTS - 1), trained=st.booleans(), gone=st.booleans())
    def its_node_is_taken(self, slot: int, trained: bool, gone: bool) -> None:
        """It is no death, however often it happens, but for the last time. gone: before the driver had moved it."""
        if (
            len(
                self.record.trial(self.running[slot % len(self.running)]).user_attrs.get(
                    trial_attributes.MIGRATIONS, []
                )
            )
            >= MAX_MIGRATIONS - 1
        ):
            return
        number = self.trained(slot) if trained else self.running[slot % len(self.running)]
        self.running.remove(number)
        if gone:
            self.drained = {number}
        else:
            self.preemption.migrated = {number: "its node is drained"}
        trial = self.ray_trial(number)
        Path(trial.error_file).write_text("The actor died unexpectedly")
        self.scheduler.on_trial_error(None, trial)
        self.drained, self.preemption.migrated = set(), {}

    @rule(slot=st.integers(0, SLOTS - 1), trained=st.booleans())
    def the_driver_dies(self, slot: int, trained: bool) -> None:
        if trained and self.running:
            self.trained(slot)  # its report is never heard by this driver
        self.start()

    @precondition(lambda self: self.running)
    @rule(slot=st.integers(0, SLOTS - 1), write=st.integers(0, 4))
    def the_driver_dies_while_it_writes_a_report(self, slot: int, write: int) -> None:
        number = self.trained(slot)
        with suppress(Killed), killed_at_write(write):
            self.scheduler.on_trial_result(None, self.ray_trial(number), self.result(number))
        self.start()
        if len(reports_of(self.record.trial(number))) > len(self.model.heard[number]):
            self.expected(number)  # it was heard, and the new driver has settled what that meant

    @precondition(lambda self: len(self.running) < SLOTS)
    @rule(write=st.integers(0, 8))
    def the_driver_dies_while_it_writes_a_suggestion(self, write: int) -> None:
        with suppress(Killed), killed_at_write(write):
            self.searcher.suggest("")
        self.start()
        for trial in self.record.trials()[len(self.model.heard) :]:
            self.asked(trial.number)

    # --- the parts of it -------------------------------------------------------------------------------------------

    def asked(self, number: int) -> None:
        self.model.heard.setdefault(number, [])

    def trained(self, slot: int) -> int:
        """One epoch more in the checkpoint, unless an earlier driver's training is not told yet: no epoch is run."""
        number = self.running[slot % len(self.running)]
        reports = self.checkpoints.setdefault(number, [])
        if len(reports) == len(self.model.heard[number]):
            config = TrainConfig.from_dict(self.record.trial(number).user_attrs[trial_attributes.CONFIG])
            reports.append(learned(config, len(reports) + 1))
        return number

    def expected(self, number: int) -> bool:
        """Tells the model of all that the checkpoint has."""
        goes_on = True
        for report in self.checkpoints[number][len(self.model.heard[number]) :]:
            diverged = not math.isfinite(report.ssim)
            goes_on = self.model.on_report(number, -1.0 if diverged else report.ssim, diverged)
        return goes_on

    def result(self, number: int) -> dict[str, Any]:
        return {
            "reports": [report.as_dict() for report in self.checkpoints[number]],
            "known": None,
            "step_seconds": 1.0,
        }

    def ray_trial(self, number: int) -> Any:
        error_file = str(self.folder / "error.txt")
        return SimpleNamespace(config={"number": number}, pickled_error_file=None, error_file=error_file)

    # --- what must hold --------------------------------------------------------------------------------------------

    @invariant()
    def the_record_is_the_model(self) -> None:
        trials = self.record.trials()
        assert len(trials) == len(self.model.heard)
        assert len({str(trial.params) for trial in trials}) == len(trials)
        for trial in trials:
            values = self.model.heard[trial.number]
            assert trial.intermediate_values == dict(enumerate(values, start=1))
            assert len(trial.user_attrs.get(trial_attributes.FAILURES, [])) == self.model.deaths.get(trial.number, 0)
            end = self.model.ends.get(trial.number)
            states = {None: TrialState.RUNNING, "finished": TrialState.COMPLETE, "error": TrialState.FAIL}
            assert trial.state == states.get(end, TrialState.PRUNED)
            if end not in (None, "error"):
                assert trial.user_attrs[trial_attributes.DECISION]["reason"] == end
                assert trial.value == values[-1]
        finished = {trial.number for trial in trials if trial.state.is_finished()}
        assert finished >= self.was_finished
        self.was_finished = finished

    def teardown(self) -> None:
        """What was written is what the driver knew; and every decision can be taken again from it."""
        written = Record(self.folder, "first").trials()
        known = self.record.trials()
        for mine, theirs in zip(known, written, strict=True):
            for name in ("state", "params", "values", "intermediate_values", "user_attrs", "distributions"):
                assert getattr(mine, name) == getattr(theirs, name)
        for trial in written:
            suggestion = suggestions.suggest(trials_as_of_suggestion(written, trial.number), SPACE, SEARCH)
            assert suggestion is not None
            assert suggestion.params == trial.params
            taken = report_decision.replay_decisions(written, trial.number, SEARCH)
            assert all(decision.action == "continue" for decision in taken[:-1])
            if trial_attributes.DECISION in trial.user_attrs:
                assert report_decision.Decision(**trial.user_attrs[trial_attributes.DECISION]) == taken[-1]
        shutil.rmtree(self.folder)


class Thorough(AnyHistory):
    """The same, with more of them."""


AnyHistory.TestCase.settings = settings(
    max_examples=6, stateful_step_count=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
Thorough.TestCase.settings = settings(AnyHistory.TestCase.settings, max_examples=100, derandomize=False)
TestAnyHistoryIsWhatThePlainModelSays = AnyHistory.TestCase
TestManyHistoriesAreWhatThePlainModelSays = pytest.mark.slow(pytest.mark.timeout(1800)(Thorough.TestCase))
