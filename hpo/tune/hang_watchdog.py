"""Ray Tune's callback: kills trials that hang. Ray then reports them as failed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune

from hpo.tune.errors import propagate_errors

FLOOR_SECONDS = 60.0  # no trial counts as hung before
FACTOR = 10.0  # times the slowest epoch
UNKNOWN_SECONDS = 600.0  # before the first report of any trial
_PAUSE_SECONDS = 10.0  # between two rounds: the driver itself was stopped, and has not read the trials' reports yet


@dataclass(frozen=True, slots=True)
class TrialTiming:
    """Seconds of a running trial."""

    since: float  # its last report, or its start
    slowest: float | None = None  # its slowest epoch; None before the first


def find_hung(timings: Mapping[int, TrialTiming], slowest_first: float | None, now: float) -> dict[int, str]:
    """The trials that hang, each with an error message. slowest_first: seconds until the slowest of all first reports,
    set-up included."""
    hung = {}
    for number, timing in timings.items():
        expected = slowest_first if timing.slowest is None else timing.slowest
        timeout = UNKNOWN_SECONDS if expected is None else max(FLOOR_SECONDS, FACTOR * expected)
        if now - timing.since > timeout:
            hung[number] = f"hung: no report for {timeout:.0f} s"
    return hung


class HangWatchdog(tune.Callback):  # type: ignore[misc]
    """A trial must report from the time when Ray has started its process."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, is_away: Callable[[], bool] = lambda: False
    ) -> None:
        """is_away: whether the storage is unavailable; all trials wait for it."""
        self._clock, self._checked, self._is_away = clock, clock(), is_away
        self._timings: dict[int, TrialTiming] = {}
        self._slowest_first: float | None = None
        self.hung: dict[int, str] = {}  # trials that were killed, with an error message

    @propagate_errors
    def on_trial_start(self, iteration: int, trials: Sequence[Any], trial: Any, **_: Any) -> None:
        self._timings[trial.config["number"]] = TrialTiming(self._clock())
        self.hung.pop(trial.config["number"], None)

    @propagate_errors
    def on_trial_result(
        self, iteration: int, trials: Sequence[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        """Update the timing. The result has all reports of the trial, those of earlier attempts included."""
        number, now = trial.config["number"], self._clock()
        timing = self._timings[number]
        epochs = [report["seconds"] + report["eval_seconds"] for report in result["reports"]]
        epochs.append(result["step_seconds"])  # includes the upload
        if timing.slowest is None:
            self._slowest_first = max(self._slowest_first or 0.0, now - timing.since, epochs[0])
        self._timings[number] = TrialTiming(now, max(epochs))

    def on_trial_complete(self, iteration: int, trials: Sequence[Any], trial: Any, **_: Any) -> None:
        self._timings.pop(trial.config["number"], None)

    on_trial_error = on_trial_complete

    @propagate_errors
    def on_step_end(self, iteration: int, trials: Sequence[Any], **_: Any) -> None:
        """Kill the trials that hang. Tune calls this at least ten times a second."""
        now = self._clock()
        passed, self._checked = now - self._checked, now
        if passed > _PAUSE_SECONDS or self._is_away():
            self._timings = {
                n: TrialTiming(timing.since + passed, timing.slowest) for n, timing in self._timings.items()
            }
        hung = find_hung(self._timings, self._slowest_first, now)
        for trial in trials if hung else ():
            number = trial.config["number"]
            if number in hung and trial.status == "RUNNING":
                self.hung[number] = hung[number]
                del self._timings[number]
                ray.kill(trial.temporary_state.ray_actor)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles callbacks into its scratch folder
