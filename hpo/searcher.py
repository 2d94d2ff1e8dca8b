"""Ray Tune's Searcher: asks the conductor for the next trial."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from optuna.trial import FrozenTrial
from ray.tune.search import Searcher

from hpo.conductor import Conductor


class ConductorSearcher(Searcher):  # type: ignore[misc]
    """Results go to the scheduler, which Ray asks first; only a trial that Ray gave up is heard of here."""

    def __init__(self, conductor: Conductor, to_ray: Callable[[FrozenTrial], dict[str, Any]]) -> None:
        super().__init__()
        self._conductor, self._to_ray = conductor, to_ray
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The config that the trial is set up with."""
        trial = self._conductor.next_trial()
        if trial is None:
            finished: str = Searcher.FINISHED
            return finished
        self._numbers[trial_id] = trial.number
        return self._to_ray(trial)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """error: it died as often as it may."""
        if error:
            self._conductor.give_up(self._numbers[trial_id], "it died as often as it may; see the log")

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the record is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Never called: a search is continued from its record."""
        raise AssertionError("a search is continued from its record")

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles searchers into its scratch folder; this one holds a database
