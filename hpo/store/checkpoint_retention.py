"""Which checkpoints stay on disk: the best of the k best trials, and all that an unfinished trial needs to continue."""

from __future__ import annotations

import bisect
import logging
from collections.abc import Callable
from pathlib import Path

from optuna.trial import FrozenTrial

from hpo.policy.leaderboard import front, rank
from hpo.store.checkpoint_upload import FENCING_TOKEN
from hpo.store.record import Record
from model.training_files import BEST, LAST

log = logging.getLogger(__name__)


class Retention:
    """A listener that deletes checkpoints when a trial ends: its own, and the best one of the trial that it displaces.

    Ray asks a trial for its next step only after the listeners have had its report, so no worker writes meanwhile.
    """

    def __init__(self, record: Record, also_delete: Callable[[Path], None] = lambda _: None) -> None:
        """also_delete: deletes the same file from the storage."""
        self._record, self._also_delete = record, also_delete
        self._ended: set[int] = set()
        self._kept: list[tuple[float, int]] = []  # rank and number of the best trials, best first
        self._front: dict[int, FrozenTrial] = {}  # with several objectives

    def on_trial_update(self, trial: FrozenTrial) -> None:
        """See Listener. A continued search reports all its trials first, which deletes what a killed driver left."""
        if not trial.state.is_finished() or trial.number in self._ended:
            return
        self._ended.add(trial.number)
        folder = self._record.trial_folder(trial.number)
        self._delete(folder / LAST)
        self._also_delete(folder / FENCING_TOKEN)
        for part in folder.glob(".*"):  # of a process that was killed while it wrote
            _unlink(part)
        place = rank(trial)
        if place is None:
            self._delete(folder / BEST)
            return
        before = {number for _, number in self._kept} | self._front.keys() | {trial.number}
        bisect.insort(self._kept, place)
        del self._kept[self._record.search.keep_checkpoints :]
        if self._record.search.is_multi_objective:
            members = {**self._front, trial.number: trial}
            self._front = {number: members[number] for number in front(members.values(), self._record.search)}
        for number in before - {number for _, number in self._kept} - self._front.keys():
            self._delete(self._record.trial_folder(number) / BEST)

    def close(self) -> None:
        """See Listener."""

    def _delete(self, path: Path) -> None:
        _unlink(path)
        self._also_delete(path)


def _unlink(path: Path) -> None:
    """A file that cannot be deleted only takes up space, so the search continues."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s: cannot be deleted (%s)", path, error.strerror)
