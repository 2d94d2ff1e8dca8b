"""Searches in virtual time over recorded curves, and the product's own decisions as one of the methods."""

from __future__ import annotations

import heapq
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from optuna.trial import FrozenTrial, TrialState, create_trial
from replay_table import Curve, Table

from hpo.policy import report_decision, suggestions
from hpo.policy.report_decision import Decision
from hpo.policy.search_config import SearchConfig
from hpo.policy.suggestions import Suggestion
from hpo.policy.trial_attributes import DECISION, REPORT_INDEX, REPORTS
from model.training_report import EvalReport
from search_spaces import Space


class Decider(Protocol):
    """A search method. One that resumes paused trials also has `resume`: like `next`, but never a new trial."""

    def next(self) -> tuple[int, Mapping[str, Any]] | None:
        """Key and parameters of a trial to run, new or resumed. None: nothing for now."""

    def report(self, key: int, report: EvalReport, value: float, is_last: bool) -> bool:
        """Return whether the trial continues. is_last: it ends in any case, at full length or diverged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """The result of one search."""

    found: bool
    epochs: int  # of all its trials
    trials: int
    virtual_time: float  # in epochs of one worker
    seconds: float  # real time that the method took
    value: float = -math.inf  # the winner's: the best of any epoch of a trial that did not diverge
    wrong_prunings: int = 0  # trials that were pruned when no living trial had been better at that epoch


@dataclass(kw_only=True, slots=True)
class _Trial:
    curve: Curve
    epoch: int = 0
    wrongly_pruned: bool = False

    @property
    def is_dead(self) -> bool:
        """Diverged or collapsed."""
        return not self.curve.is_full and self.epoch == len(self.curve.values)


def simulate(
    decider: Decider, table: Table, *, seed: int, workers: int = 4, budget: float = 3_000, trials: int | None = None
) -> Outcome:
    """Simulate a search until it finds a configuration or spends `budget` epochs; with `trials`, until so many end."""
    began, now, epochs, found = time.perf_counter(), 0.0, 0, False
    jitter = random.Random(seed)  # so that workers report in changing order
    begun: dict[int, _Trial] = {}
    resume = getattr(decider, "resume", lambda: None)
    events: list[tuple[float, int]] = []  # the next report of each running trial
    while epochs < budget and not (found and trials is None):
        while len(events) < workers:
            job = decider.next() if trials is None or len(begun) < trials else resume()
            if job is None:
                break
            key, params = job
            trial = begun.setdefault(key, _Trial(curve=table.curve(params)))
            trial.wrongly_pruned = False
            heapq.heappush(events, (now + jitter.uniform(0.9, 1.1), key))
        if not events:
            break
        now, key = heapq.heappop(events)
        epochs += 1
        trial = begun[key]
        trial.epoch += 1
        value, is_last = trial.curve.values[trial.epoch - 1], trial.epoch == len(trial.curve.values)
        continues = decider.report(key, trial.curve.reports[trial.epoch - 1], value, is_last)
        if is_last:
            found = found or (trial.curve.is_full and value >= table.top.threshold)
        elif continues:
            heapq.heappush(events, (now + jitter.uniform(0.9, 1.1), key))
        else:
            rivals = [other for other in begun.values() if other.epoch >= trial.epoch and not other.is_dead]
            trial.wrongly_pruned = all(value >= other.curve.values[trial.epoch - 1] for other in rivals)
    return Outcome(
        found=found,
        epochs=epochs,
        trials=len(begun),
        virtual_time=now,
        seconds=time.perf_counter() - began,
        value=max(
            (max(trial.curve.values[: trial.epoch]) for trial in begun.values() if trial.epoch and not trial.is_dead),
            default=-math.inf,
        ),
        wrong_prunings=sum(trial.wrongly_pruned for trial in begun.values()),
    )


class Ours:
    """The product's decisions over trials in memory; another `suggest` or `judge` makes a variant to compare."""

    def __init__(
        self,
        space: Space,
        search: SearchConfig,
        *,
        suggest: Callable[..., Suggestion | None] = suggestions.suggest,
        judge: Callable[..., Decision] = report_decision.decide_pruning,
    ) -> None:
        self.trials: list[FrozenTrial] = []
        self._space, self._search, self._suggest, self._judge = space, search, suggest, judge
        self._num_reports = 0

    def next(self) -> tuple[int, Mapping[str, Any]] | None:
        """Like SearchController.next_trial and Record.add."""
        suggestion = self._suggest(self.trials, self._space, self._search)
        if suggestion is None:
            return None
        trial = create_trial(
            state=TrialState.RUNNING,
            params=dict(suggestion.params),
            distributions=dict(suggestion.distributions),
            user_attrs=suggestion.user_attrs(self._num_reports),
        )
        trial.number = len(self.trials)
        self.trials.append(trial)
        return trial.number, trial.params

    def report(self, key: int, report: EvalReport, value: float, is_last: bool) -> bool:
        """Like Record.append_report; `judge` finds out by itself whether the report is the last."""
        trial = self.trials[key]
        trial.user_attrs[REPORTS].append({**report.as_dict(), REPORT_INDEX: self._num_reports})
        trial.intermediate_values[report.epoch] = value
        self._num_reports += 1
        decision = self._judge(self.trials, key, report.epoch, self._search)
        if decision.action == "continue":
            return True
        trial.user_attrs[DECISION] = asdict(decision)
        trial.state = TrialState.COMPLETE if decision.action == "complete" else TrialState.PRUNED
        trial.values, trial.datetime_complete = [decision.value], trial.datetime_start
        return False


def ours(space: Space, search: SearchConfig, **changed: Any) -> Ours:
    """Make `Ours` with some settings of SearchConfig changed."""
    return Ours(space, replace(search, **changed))
