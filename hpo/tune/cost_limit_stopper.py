"""Ray Tune's stopper: ends the trials when the money is used up, and saves what was spent.

The rule is in hpo.cluster.budget.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ray import tune

from hpo.search_controller import SearchBudget
from hpo.tune.errors import propagate_errors

_CHECK_SECONDS = 1.0
_SAVE_SECONDS = 60.0


class CostLimitStopper(tune.Stopper):  # type: ignore[misc]
    """Checks the budget once a second."""

    def __init__(
        self,
        budget: SearchBudget,
        stop_trials: Callable[[], None],
        save_cost: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            stop_trials: stops the running trials at once. Tune itself would let each end its epoch.
            save_cost: is called once a minute.
        """
        self._budget, self._stop_trials, self._save_cost, self._clock = budget, stop_trials, save_cost, clock
        self._checked = self._saved = clock()
        self._is_over = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """It never stops one trial alone."""
        return False

    @propagate_errors
    def stop_all(self) -> bool:
        """Whether the experiment ends. Tune calls this in every round of its loop."""
        now = self._clock()
        if now - self._saved >= _SAVE_SECONDS:
            self._saved = now
            self._save_cost()
        if not self._is_over and now - self._checked >= _CHECK_SECONDS:
            self._checked = now
            self._is_over = not self._budget.allows_running_trials()
            if self._is_over:
                self._stop_trials()
        return self._is_over

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles it into its scratch folder
