"""Which checkpoints stay on disk: the best of the k best trials, and all that an unfinished trial needs to go on."""

from __future__ import annotations

import bisect
import logging
from collections.abc import Callable
from pathlib import Path

from optuna.trial import FrozenTrial

from hpo.policy.leaderboard import rank
from hpo.store.checkpoint_sync import FENCING_TOKEN
from hpo.store.record import Record
from model.run_layout import BEST, LAST

log = logging.getLogger(__name__)


class Retention:
    """A listener. Files go when a trial ends: its own, and those of the one that it supplants. Ray has asked the trial
    for its next step only after a report was heard, so nobody writes any more."""

    def __init__(self, record: Record, also: Callable[[Path], None] = lambda _: None) -> None:
        """also: removes the same file elsewhere."""
        self._record, self._also = record, also
        self._ended: set[int] = set()
        self._kept: list[tuple[float, int]] = []

    def on_trial_update(self, trial: FrozenTrial) -> None:
        """See Listener. A continued search tells of all trials first: what a kill left behind goes then."""
        if not trial.state.is_finished() or trial.number in self._ended:
            return
        self._ended.add(trial.number)
        folder = self._record.trial_folder(trial.number)
        self._remove(folder / LAST)
        self._also(folder / FENCING_TOKEN)
        for part in folder.glob(".*"):  # of a process that was killed while it wrote
            _remove(part)
        place = rank(trial)
        if place is None:
            self._remove(folder / BEST)
            return
        bisect.insort(self._kept, place)
        for _, number in self._kept[self._record.search.keep_checkpoints :]:
            self._remove(self._record.trial_folder(number) / BEST)
        del self._kept[self._record.search.keep_checkpoints :]

    def close(self) -> None:
        """Nothing is left to do."""

    def _remove(self, path: Path) -> None:
        _remove(path)
        self._also(path)


def _remove(path: Path) -> None:
    """A file that stays costs room and nothing else: the search goes on."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s: stays on disk (%s)", path, error.strerror)
