"""Ray Tune's stopper: ends the trials when the money is up, and keeps on record what was spent."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ray import tune

from hpo.tune.errors import propagate_errors

_LOOK_SECONDS = 1.0
_NOTE_SECONDS = 60.0


class CostLimitStopper(tune.Stopper):  # type: ignore[misc]
    """is_empty: asked once a second; end: stops what runs; note: called once a minute."""

    def __init__(
        self,
        is_empty: Callable[[], bool],
        end: Callable[[], None],
        note: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._is_empty, self._end, self._note, self._clock = is_empty, end, note, clock
        self._looked = self._noted = clock()
        self._ended = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """One trial alone is none of its business."""
        return False

    @propagate_errors
    def stop_all(self) -> bool:
        """Ray's loop came round. Of its own Tune would let each trial end its epoch, however long that takes."""
        now = self._clock()
        if now - self._noted >= _NOTE_SECONDS:
            self._noted = now
            self._note()
        if not self._ended and now - self._looked >= _LOOK_SECONDS:
            self._looked = now
            self._ended = self._is_empty()
            if self._ended:
                self._end()
        return self._ended

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles it into its scratch folder
