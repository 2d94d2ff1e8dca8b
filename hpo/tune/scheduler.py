"""Ray Tune's scheduler: passes reports and failures to the controller, and measures the idle time of the slots."""

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
    """One call of a trial's step. Times are seconds on the driver's clock."""

    number: int
    start: float
    end: float


class ControllerScheduler(FIFOScheduler):  # type: ignore[misc]
    """Trials start in the order in which they were suggested."""

    def __init__(
        self, controller: SearchController, cluster: Cluster, watchdog: HangWatchdog, preemption: PreemptionHandler
    ) -> None:
        super().__init__()
        self._controller, self._cluster, self._watchdog, self._preemption = controller, cluster, watchdog, preemption
        self._oom_kills = kernel_oom_kills()
        self.steps: list[Step] = []

    @propagate_errors
    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Record the reports; return whether the trial continues. Ray calls this before the searcher, and not after a
        trial that ends itself: ours do not."""
        number, now = trial.config["number"], time.monotonic()
        self.steps.append(Step(number, now - result["step_seconds"], now))
        if result["known"] is not None:
            start = self._controller.on_start(number, dict(result["known"]))
            if start.action != "continue" or not result["reports"]:
                return str(TrialScheduler.CONTINUE if start.action == "continue" else TrialScheduler.STOP)
        reports = [EvalReport.from_dict(report) for report in result["reports"]]
        decision = self._controller.on_report(number, reports, result.get("node"))
        return str(TrialScheduler.CONTINUE if decision.action == "continue" else TrialScheduler.STOP)

    @propagate_errors
    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """A trial has failed; Ray itself does not retry it. Raises HeadGoneError if the head is gone, so that all
        trials fail; MachineError, StorageError if every other trial would fail in the same way."""
        if not self._cluster.is_alive():
            raise HeadGoneError("Ray's head is gone")
        failure = self._classify(trial)
        if failure.action is FailureAction.ABORT_SEARCH:
            storage = self._controller.record.storage
            raise StorageError(failure.error) if storage and storage.is_away else MachineError(failure.error)
        self._controller.on_trial_failure(trial.config["number"], failure)

    def _classify(self, trial: Any) -> TrialFailure:
        """The failure; one that the watchdog or the preemption handler has caused is theirs, whatever Ray says."""
        number = trial.config["number"]
        before, self._oom_kills = self._oom_kills, kernel_oom_kills()
        if number in self._watchdog.hung:
            return TrialFailure(error=self._watchdog.hung[number], action=FailureAction.RETRY)
        if number in self._preemption.migrated:
            return TrialFailure(error=self._preemption.migrated[number], action=FailureAction.MIGRATE)
        failure = classify_failure(_error_of(trial), oom_kills=self._oom_kills - before)
        if failure.action is FailureAction.RETRY and self._preemption.was_drained(number):
            return TrialFailure(error=DRAINED, action=FailureAction.MIGRATE)
        return failure

    def overhead_share(self) -> float | None:
        """The share of the slots' time that was idle so far. Called in the drawing thread of Progress."""
        measured = overhead(list(self.steps), self._cluster.slots, began=0.0)
        return measured.share if measured else None

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles schedulers into its scratch folder


def _error_of(trial: Any) -> BaseException | str:
    """Ray has just written the error into its scratch folder. Trial.get_error reads a copy that is written later."""
    if trial.pickled_error_file:
        error: BaseException = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
        return error
    return Path(trial.error_file).read_text()


@dataclass(frozen=True, kw_only=True, slots=True)
class Overhead:
    """The slots' time, from the start of the search to its last report."""

    share: float  # idle, of the slots' time between the first trial's start and the last one's start
    setup_seconds: float  # before the first trial started
    tail_seconds: float  # from the last trial's start to the last report: slots run empty, since no trial is left


def overhead(steps: Sequence[Step], slots: int, began: float) -> Overhead | None:
    """1 - (seconds inside `step`, summed over the slots) / (slots x time), before the tail; None before two trials have
    started. began: when the search began, on the driver's clock."""
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
