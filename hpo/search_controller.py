"""What happens next in a search, applied to its record: unfinished trials first, then decide; no Ray in here."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from optuna.trial import FrozenTrial, TrialState

from hpo.policy import pruning, sampling, trial_attributes
from hpo.policy.pruning import Decision
from hpo.policy.retry_policy import TrialFailure
from hpo.policy.sampling import Suggestion
from hpo.store.record import Record
from model.common.errors import ConfigError, MachineError
from model.training_report import EvalReport
from search_spaces import Space

log = logging.getLogger(__name__)

ATTEMPTS = 3  # of a trial whose process or node dies
MOVES = 20  # of a trial whose nodes are taken: none of them counts, but they shall not go on for ever
HOPELESS = 3  # failed trials, where none ever reported: whatever it is, all others would die of it


class Listener(Protocol):
    """Who wants to know: the live table, the tracker. Optional services are listeners that are not there."""

    def on_trial_update(self, trial: FrozenTrial) -> None:
        """A trial began, reported or ended; it comes whole, so that a missed call is made up for by the next."""

    def close(self) -> None:
        """The search is over, or stops here."""


class SearchController:
    """Hands out trials and hears their reports. Each step is on the record before anything else learns of it."""

    def __init__(
        self,
        record: Record,
        space: Space,
        listeners: Sequence[Listener],
        *,
        time_is_up: Callable[[], bool],
        money_is_up: Callable[[], bool] = lambda: False,
    ) -> None:
        """time_is_up: no new trials; money_is_up: nor does an unfinished one go on."""
        self.record, self._space, self._listeners = record, space, listeners
        self._time_is_up, self._money_is_up = time_is_up, money_is_up
        self._running: set[int] = set()
        self._fell_back: set[int] = set()
        self._exhausted = False
        trials = record.trials()
        self._unfinished = deque(trial.number for trial in trials if trial_attributes.is_unfinished(trial))
        for trial in trials:
            self._notify(trial)

    @property
    def trials_left(self) -> int:
        """To be run, the unfinished ones included."""
        return len(self._unfinished) + max(0, self.record.search.trials - len(self.record.trials()))

    @property
    def running(self) -> bool:
        """Whether any is: it may die, and be there to be run again."""
        return bool(self._running)

    def next_trial(self) -> FrozenTrial | None:
        """One to run; None when there is no other."""
        trial = None if self._money_is_up() else self._unfinished_trial() or self._new_trial()
        if trial is not None:
            self._running.add(trial.number)
        return trial

    def _unfinished_trial(self) -> FrozenTrial | None:
        return self.record.trial(self._unfinished.popleft()) if self._unfinished else None

    def _new_trial(self) -> FrozenTrial | None:
        trials = self.record.trials()
        if self._exhausted or len(trials) >= self.record.search.trials or self._time_is_up():
            return None
        if queued := self.record.queued():
            return self._queued_trial(queued) or self._new_trial()
        suggestion = sampling.suggest(trials, self._space, self.record.search)
        if suggestion is None:
            self._exhausted = True  # not to look through the whole space again ten times a second
            return None
        trial = self.record.add(suggestion)
        self._notify(trial)
        return trial

    def _queued_trial(self, queued: FrozenTrial) -> FrozenTrial | None:
        """One that somebody put into the study with Optuna's tools. None: it fails, since the space has no such one."""
        record, wrong = self.record, ""
        try:
            suggestion = sampling.suggest_queued(
                queued.system_attrs.get(trial_attributes.FIXED_PARAMS, {}), record.trials(), self._space, record.search
            )
        except ConfigError as error:
            wrong = f"it was queued, but {error}"
            suggestion = Suggestion(
                params={}, distributions={}, config=record.search.base_config(), by=trial_attributes.QUEUED
            )
        trial = record.add(suggestion, queued)
        if wrong:
            log.warning("trial %d: %s", trial.number, wrong)
            record.fail(trial.number, wrong)
        self._notify(record.trial(trial.number))
        return None if wrong else trial

    def on_report(self, number: int, reports: Sequence[EvalReport], node: str | None = None) -> Decision:
        """All reports of a trial so far; those that the record lacks are judged in turn. Gives the last decision.

        node: the host that trained the last epoch, where that is known.
        """
        trial = self.record.trial(number)
        if trial.state.is_finished():
            return Decision(**trial.user_attrs[trial_attributes.DECISION])
        heard = len(trial.intermediate_values)
        if len(reports) < heard and number not in self._fell_back:
            self._fell_back.add(number)
            log.warning(
                "trial %d: its last checkpoint was damaged or gone; it is back at epoch %d, and trains again up to the "
                "%d that are on record",
                number,
                len(reports),
                heard,
            )
        new = reports[heard:]
        if not new:  # the last one was heard, by a driver that died: it went on, or the trial would have ended
            return pruning.decide_pruning(self.record.trials(), number, len(reports), self.record.search)
        for report in new:
            decision = self.record.append_report(number, report, node if report is new[-1] else None)
            if decision.action != "go on":
                self._running.discard(number)
            self._notify(self.record.trial(number))
            if decision.action != "go on":
                break
        return decision

    def on_trial_failure(self, number: int, death: TrialFailure) -> None:
        """Its process or node died. The next attempt, if there is one, goes on from its last checkpoint."""
        if death.then == "move":
            times, again, word = self.record.add_migration(number, death.error), MOVES, "moved"
        else:
            times, again, word = self.record.add_failure(number, death.error), ATTEMPTS, "died"
        if death.then in ("again", "move") and times < again:
            self._unfinished.appendleft(number)
        else:
            self.record.fail(number, death.error if times == 1 else f"{word} {times} times, at last: {death.error}")
        self._running.discard(number)
        self._notify(self.record.trial(number))
        trials = self.record.trials()
        failed = sum(trial.state == TrialState.FAIL for trial in trials)
        if failed >= HOPELESS and not any(trial.intermediate_values for trial in trials):
            raise MachineError(f"{failed} trials failed and none finished an epoch; the last one: {death.error}")

    def _notify(self, trial: FrozenTrial) -> None:
        for listener in self._listeners:
            listener.on_trial_update(trial)
