"""Ray Tune's Searcher: asks the controller for the next trial."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from optuna.trial import FrozenTrial
from ray.tune.search import Searcher

from hpo.search_controller import SearchController
from hpo.tune.errors import propagate_errors


class ControllerSearcher(Searcher):  # type: ignore[misc]
    """Hands out trials. Reports and failures reach the controller through the scheduler, which Ray notifies first."""

    def __init__(self, controller: SearchController, config_of: Callable[[FrozenTrial], dict[str, Any]]) -> None:
        """config_of: returns what the process of a trial needs."""
        super().__init__()
        self._controller, self._config_of = controller, config_of
        self._numbers: dict[str, int] = {}  # of trials, by Ray's id of the attempt

    @propagate_errors
    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The config of the next trial; None while none is left but a running one may fail and be retried."""
        trial = self._controller.next_trial()
        if trial is not None:
            self._numbers[trial_id] = trial.number
            return self._config_of(trial)
        return None if self._controller.running else str(Searcher.FINISHED)

    @propagate_errors
    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Check the order that the controller relies on: the scheduler has handled a failure before."""
        number = self._numbers.pop(trial_id, None)
        if error and number is not None and self._controller.is_running(number):
            raise AssertionError(f"trial {number}: Ray notified the searcher of a failure before the scheduler")

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the record is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Never called: a search is continued from its record."""
        raise AssertionError("a search is continued from its record")

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles searchers into its scratch folder; this one holds a database
