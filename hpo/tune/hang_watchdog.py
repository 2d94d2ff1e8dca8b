"""Ray Tune's callback: kills trials that hang. Their death is then heard of like any other."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune

from hpo.tune.errors import propagate_errors

_AWAY_SECONDS = 10.0  # between two looks: the driver itself was stopped, and what trials reported is not read yet


class HangWatchdog(tune.Callback):  # type: ignore[misc]
    """From its start on, which Ray tells when its process is there, a trial is expected to report."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, is_away: Callable[[], bool] = lambda: False
    ) -> None:
        """is_away: whether the storage is, for which they all wait."""
        self._clock, self._looked, self._is_away = clock, clock(), is_away
        self._paces: dict[int, TrialTiming] = {}
        self._slowest_first: float | None = None
        self.hung: dict[int, str] = {}  # killed for it, with the words for it

    @propagate_errors
    def on_trial_start(self, iteration: int, trials: Sequence[Any], trial: Any, **_: Any) -> None:
        """An attempt."""
        self._paces[trial.config["number"]] = TrialTiming(self._clock())
        self.hung.pop(trial.config["number"], None)

    @propagate_errors
    def on_trial_result(
        self, iteration: int, trials: Sequence[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        """All its reports, which also tell how long its epochs took in earlier attempts."""
        number, now = trial.config["number"], self._clock()
        pace = self._paces[number]
        epochs = [report["seconds"] + report["eval_seconds"] for report in result["reports"]]
        epochs.append(result["step_seconds"])  # with the way into the storage
        if pace.slowest is None:
            self._slowest_first = max(self._slowest_first or 0.0, now - pace.since, epochs[0])
        self._paces[number] = TrialTiming(now, max(epochs))

    def on_trial_complete(self, iteration: int, trials: Sequence[Any], trial: Any, **_: Any) -> None:
        """Nothing more to expect."""
        self._paces.pop(trial.config["number"], None)

    def on_trial_error(self, iteration: int, trials: Sequence[Any], trial: Any, **_: Any) -> None:
        """As above."""
        self._paces.pop(trial.config["number"], None)

    @propagate_errors
    def on_step_end(self, iteration: int, trials: Sequence[Any], **_: Any) -> None:
        """Ray's loop came round: ten times a second, or more often."""
        now = self._clock()
        since, self._looked = now - self._looked, now
        if since > _AWAY_SECONDS or self._is_away():
            self._paces = {
                number: TrialTiming(pace.since + since, pace.slowest) for number, pace in self._paces.items()
            }
        late = find_hung(self._paces, self._slowest_first, now)
        for trial in trials if late else ():
            number = trial.config["number"]
            if number in late and trial.status == "RUNNING":
                self.hung[number] = late[number]
                del self._paces[number]
                ray.kill(trial.temporary_state.ray_actor)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles callbacks into its scratch folder


FLOOR_SECONDS = 60.0  # no trial hangs before
FACTOR = 10.0  # times the slowest epoch
UNKNOWN_SECONDS = 600.0  # while no epoch of any trial was seen


@dataclass(frozen=True, slots=True)
class TrialTiming:
    """Of a running trial."""

    since: float  # its last report, or its start
    slowest: float | None = None  # seconds of its slowest epoch; None before the first


def hang_timeout(pace: TrialTiming, slowest_first: float | None) -> float:
    """Seconds without a report after which it hangs. slowest_first: of all trials' first reports, set-up included."""
    expected = slowest_first if pace.slowest is None else pace.slowest
    return UNKNOWN_SECONDS if expected is None else max(FLOOR_SECONDS, FACTOR * expected)


def find_hung(paces: Mapping[int, TrialTiming], slowest_first: float | None, now: float) -> dict[int, str]:
    """Which trials hang, and the words for it."""
    limits = {number: hang_timeout(pace, slowest_first) for number, pace in paces.items()}
    return {
        number: f"hung: no report for {seconds:.0f} s"
        for number, seconds in limits.items()
        if now - paces[number].since > seconds
    }
