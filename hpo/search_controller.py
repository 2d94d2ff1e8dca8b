"""Runs the decisions of a search: picks the next trial, prunes after each report, and retries failed trials. Every step
is on the record before a listener learns of it. There is no Ray in this module."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Protocol

from optuna.trial import FrozenTrial

from hpo.policy import retry_policy, suggestions, trial_attributes
from hpo.policy.report_decision import Decision, decide_pruning, decide_start
from hpo.policy.retry_policy import FailureAction, TrialFailure
from hpo.policy.suggestions import Suggestion
from hpo.policy.trial_objectives import known_figures, needs_figures
from hpo.store.record import Record
from model.common.errors import ConfigError
from model.training_report import EvalReport
from search_spaces import Space

log = logging.getLogger(__name__)


class Listener(Protocol):
    """An optional service that follows the trials, such as the live table or the W&B tracker."""

    def on_trial_update(self, trial: FrozenTrial) -> None:
        """A trial began, reported or ended. It comes whole, so that the next call makes up for a missed one."""

    def close(self) -> None:
        """The search is over or interrupted."""


class SearchBudget(Protocol):
    """The limits of a search in time and money. hpo.cluster.budget measures both."""

    def allows_new_trials(self) -> bool:
        """Whether another trial may begin."""

    def allows_running_trials(self) -> bool:
        """Whether running trials may continue and unfinished ones may be restarted."""


class SearchController:
    """Hands out trials, and decides on their reports and failures. It is the record's only writer, and notifies the
    listeners of every change, in their order."""

    def __init__(
        self, record: Record, space: Space, listeners: Sequence[Listener] = (), budget: SearchBudget | None = None
    ) -> None:
        self.record = record
        self._space, self._listeners, self._budget = space, listeners, budget
        self._running: set[int] = set()
        self._fell_back: set[int] = set()
        self._is_exhausted = False
        self._unfinished = deque(trial.number for trial in record.trials() if trial_attributes.is_unfinished(trial))

    def replay_history(self) -> None:
        """Notify the listeners of every trial on record, before the first step of a driver."""
        for trial in self.record.trials():
            self._notify(trial)

    @property
    def trials_left(self) -> int:
        """Trials that are still to run, unfinished ones included."""
        return len(self._unfinished) + max(0, self.record.search.trials - len(self.record.trials()))

    @property
    def running(self) -> bool:
        """Whether any trial runs; it may fail and be retried."""
        return bool(self._running)

    def is_running(self, number: int) -> bool:
        """Whether this trial runs."""
        return number in self._running

    def next_trial(self) -> FrozenTrial | None:
        """The next trial to run, an unfinished one first; None if none can run now."""
        if self._budget and not self._budget.allows_running_trials():
            return None
        trial = self.record.trial(self._unfinished.popleft()) if self._unfinished else self._new_trial()
        if trial is not None:
            self._running.add(trial.number)
        return trial

    def _new_trial(self) -> FrozenTrial | None:
        trials = self.record.trials()
        if self._is_exhausted or len(trials) >= self.record.search.trials:
            return None
        if self._budget and not self._budget.allows_new_trials():
            return None
        if queued := self.record.queued():
            return self._queued_trial(queued) or self._new_trial()
        suggestion = suggestions.suggest(trials, self._space, self.record.search)
        if suggestion is None:
            self._is_exhausted = True  # so that the whole space is not searched again ten times a second
            return None
        trial = self.record.add(suggestion)
        config = trial.user_attrs[trial_attributes.CONFIG]
        if needs_figures(self.record.search) and (known := known_figures(config, trials)):
            decision = self.record.set_known(trial.number, known)
            trial = self.record.trial(trial.number)
            if decision.action == "prune":
                self._notify(trial)
                return self._new_trial()
        self._notify(trial)
        return trial

    def _queued_trial(self, queued: FrozenTrial) -> FrozenTrial | None:
        """Start a trial that a user queued with Optuna's enqueue_trial. One that is not in the space fails: None."""
        record, problem = self.record, ""
        try:
            suggestion = suggestions.suggest_queued(
                queued.system_attrs.get(trial_attributes.FIXED_PARAMS, {}), record.trials(), self._space, record.search
            )
        except ConfigError as error:
            problem = f"it was queued, but {error}"
            suggestion = Suggestion(
                params={}, distributions={}, config=record.search.base_config(), by=trial_attributes.QUEUED
            )
        trial = record.add(suggestion, queued)
        if problem:
            log.warning("trial %d: %s", trial.number, problem)
            record.fail(trial.number, problem)
        self._notify(record.trial(trial.number))
        return None if problem else trial

    def on_start(self, number: int, known: Mapping[str, float]) -> Decision:
        """Record what was measured before the training of a trial, and decide whether it is trained.

        Args:
            known: latency (ms), params and size_mb.
        """
        trial = self.record.trial(number)
        if trial_attributes.KNOWN in trial.user_attrs:
            return decide_start(trial, self.record.search)
        decision = self.record.set_known(number, known)
        if decision.action != "continue":
            self._running.discard(number)
        self._notify(self.record.trial(number))
        return decision

    def on_report(self, number: int, reports: Sequence[EvalReport], node: str | None = None) -> Decision:
        """Record new reports of a trial, decide after each whether it continues, and return the last decision.

        Args:
            reports: all its reports so far, epoch 1 first. Those on record already are skipped.
            node: the host that trained the last epoch; None: not known.
        """
        trial = self.record.trial(number)
        if trial.state.is_finished():
            return Decision(**trial.user_attrs[trial_attributes.DECISION])
        recorded = len(trial.intermediate_values)
        if len(reports) < recorded and number not in self._fell_back:
            self._fell_back.add(number)
            log.warning(
                "trial %d: its last checkpoint was damaged or missing; it is back at epoch %d and repeats the epochs "
                "up to %d, which are on record",
                number,
                len(reports),
                recorded,
            )
        new = reports[recorded:]
        if not new:  # an earlier driver recorded the last one, and the trial continued, or it would have ended
            return decide_pruning(self.record.trials(), number, len(reports), self.record.search)
        for report in new:
            trials = self.record.trials_with_report(number, report, node if report is new[-1] else None)
            decision = decide_pruning(trials, number, report.epoch, self.record.search)
            self.record.append_report(trials[number], decision)
            if decision.action != "continue":
                self._running.discard(number)
            self._notify(self.record.trial(number))
            if decision.action != "continue":
                break
        return decision

    def on_trial_failure(self, number: int, failure: TrialFailure) -> None:
        """Record that a trial's process or node died, and retry it from its last checkpoint or fail it. Raises
        MachineError if trials only fail (hpo.policy.retry_policy)."""
        is_migration = failure.action is FailureAction.MIGRATE
        (self.record.add_migration if is_migration else self.record.add_failure)(number, failure.error)
        if error := retry_policy.final_error(failure, self.record.trial(number)):
            self.record.fail(number, error)
        else:
            self._unfinished.appendleft(number)
        self._running.discard(number)
        self._notify(self.record.trial(number))
        retry_policy.check_hopeless(self.record.trials(), failure)

    def _notify(self, trial: FrozenTrial) -> None:
        for listener in self._listeners:
            listener.on_trial_update(trial)
