"""Ray Tune's scheduler: hands every report to the conductor and answers go on or stop; keeps the time that slots
worked."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import cloudpickle
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from hpo.cluster.trial_slots import Cluster
from hpo.policy.retry_policy import DRAINED, FailureAction, TrialFailure, classify_failure, kernel_oom_kills
from hpo.search_controller import SearchController
from hpo.store.object_storage import StorageError
from hpo.tune.errors import propagate_errors
from hpo.tune.hang_watchdog import HangWatchdog
from hpo.tune.preemption import PreemptionHandler
from hpo.tune.ray_session import HeadGoneError
from model.common.errors import MachineError
from model.training_report import EvalReport


@dataclass(frozen=True, slots=True)
class Step:
    """One call of a trial's step, on the driver's clock."""

    number: int
    start: float
    end: float


class ControllerScheduler(FIFOScheduler):  # type: ignore[misc]
    """Trials start in the order in which they were suggested."""

    def __init__(
        self, conductor: SearchController, cluster: Cluster, watch: HangWatchdog, placement: PreemptionHandler
    ) -> None:
        super().__init__()
        self._conductor, self._cluster, self._watch, self._placement = conductor, cluster, watch, placement
        self._oom_kills = kernel_oom_kills()
        self.steps: list[Step] = []

    @propagate_errors
    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Ray asks here before it tells the searcher, and not at all after a trial has ended itself: trials don't."""
        number, now = trial.config["number"], time.monotonic()
        self.steps.append(Step(number, now - result["step_seconds"], now))
        reports = [EvalReport.from_dict(report) for report in result["reports"]]
        decision = self._conductor.on_report(number, reports, result.get("node"))
        answer: str = TrialScheduler.CONTINUE if decision.action == "continue" else TrialScheduler.STOP
        return answer

    @propagate_errors
    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """It died; Ray itself doesn't try again. Without the head all trials die, and through no fault of theirs."""
        if not self._cluster.is_alive():
            raise HeadGoneError("Ray's head is gone")
        number = trial.config["number"]
        before, self._oom_kills = self._oom_kills, kernel_oom_kills()
        if number in self._watch.hung:
            death = TrialFailure(error=self._watch.hung[number], action=FailureAction.RETRY)
        elif number in self._placement.migrated:
            death = TrialFailure(error=self._placement.migrated[number], action=FailureAction.MIGRATE)
        else:
            death = classify_failure(_error_of(trial), oom_kills=self._oom_kills - before)
            if death.action is FailureAction.RETRY and self._placement.was_drained(number):
                death = TrialFailure(error=DRAINED, action=FailureAction.MIGRATE)
        if death.action is FailureAction.ABORT_SEARCH:
            storage = self._conductor.record.storage
            raise StorageError(death.error) if storage and storage.is_away else MachineError(death.error)
        self._conductor.on_trial_failure(number, death)

    def overhead_share(self) -> float | None:
        """The share of the slots' time that was idle so far. Called in the drawing thread of Progress."""
        spent = overhead(list(self.steps), self._cluster.slots, began=0.0)
        return spent.share if spent else None

    def __getstate__(self) -> dict[str, Any]:
        return {}  # as the searcher's


def _error_of(trial: Any) -> BaseException | str:
    """Ray has just written it into its scratch folder. Trial.get_error looks where it has not been copied to yet."""
    if trial.pickled_error_file:
        error: BaseException = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
        return error
    return Path(trial.error_file).read_text()


@dataclass(frozen=True, kw_only=True, slots=True)
class Overhead:
    """Where the slots' time went, from the start of the search to its last report."""

    share: float  # idle, of the slots' time between the first trial's start and the last one's start
    setup_seconds: float  # before the first trial started
    tail_seconds: float  # from the last trial's start to the last report: slots run empty, none is left to start


def overhead(steps: Sequence[Step], slots: int, began: float) -> Overhead | None:
    """1 - (seconds inside `step`, summed over the slots) / (slots x time), before the tail. None without two starts."""
    starts: dict[int, float] = {}
    for step in steps:
        starts[step.number] = min(step.start, starts.get(step.number, step.start))
    first, last = min(starts.values(), default=0.0), max(starts.values(), default=0.0)
    if first == last:
        return None
    worked = sum(max(0.0, min(step.end, last) - step.start) for step in steps)
    return Overhead(
        share=max(0.0, 1 - worked / (slots * (last - first))),
        setup_seconds=first - began,
        tail_seconds=max(step.end for step in steps) - last,
    )
