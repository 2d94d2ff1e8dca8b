"""Ray Tune's Searcher: asks the conductor for the next trial."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from optuna.trial import FrozenTrial
from ray.tune.search import Searcher

from hpo.search_controller import SearchController
from hpo.tune.errors import propagate_errors


class ControllerSearcher(Searcher):  # type: ignore[misc]
    """Results and deaths go to the scheduler, which Ray asks first."""

    def __init__(self, conductor: SearchController, to_ray: Callable[[FrozenTrial], dict[str, Any]]) -> None:
        super().__init__()
        self._conductor, self._to_ray = conductor, to_ray

    @propagate_errors
    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The config that the trial is set up with; None: not now, a running one may die and come back."""
        trial = self._conductor.next_trial()
        if trial is not None:
            return self._to_ray(trial)
        finished: str = Searcher.FINISHED
        return None if self._conductor.running else finished

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: the scheduler has heard of it."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the record is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Never called: a search is continued from its record."""
        raise AssertionError("a search is continued from its record")

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles searchers into its scratch folder; this one holds a database
