"""W&B, from one thread in the driver: the search never waits for it. Trials never import wandb.

Whatever a call did not log, the next one does: hpo/tracking/wandb_runs.py draws runs from the record. The first failure of a
server is the last: from then on the search is logged offline, and `hpo sync` sends what the server lacks.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from contextlib import suppress

from optuna.trial import FrozenTrial

from hpo.store.record import Record
from hpo.tracking.wandb_runs import WandbRuns
from model.common.errors import MachineError

log = logging.getLogger(__name__)

_QUEUE_SIZE = 1_000
_FINISH_SECONDS = 30.0  # for what is left of a trial's run when it ends
_CLOSE_SECONDS = 60.0  # for all that is left at the end of a search
_EXPORT_SECONDS = 120.0  # and for the exported generator: 130 MB at the slides' width
_SYNC_SECONDS = 3_600.0  # for a run that somebody waits for


class Tracker:
    """A listener. A full queue drops calls, and the next call makes up for them.

    say: tells people, in a line, where to look.
    """

    def __init__(self, record: Record, say: Callable[[str], None] = lambda _: None) -> None:
        self._record, self._say = record, say
        self._runs = WandbRuns(record, online=record.search.wandb == "online", finish_seconds=_FINISH_SECONDS)
        self._patience = _CLOSE_SECONDS
        self._closing, self._over = threading.Event(), False
        self._exported = False
        self._told_where = False
        self._queue: queue.Queue[FrozenTrial | None] = queue.Queue(_QUEUE_SIZE)
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def on_trial_update(self, trial: FrozenTrial) -> None:
        """See Listener."""
        try:
            self._queue.put_nowait(trial)
        except queue.Full:
            log.debug("W&B lags behind; trial %d is logged later", trial.number)

    def export(self) -> None:
        """The search has its export: `close` logs that, too."""
        self._exported = True
        self._runs.finish_seconds = self._patience = _EXPORT_SECONDS

    def close(self) -> None:
        """Log what is left and close every run, in bounded time."""
        self._closing.set()
        with suppress(queue.Full):  # then it need not be woken
            self._queue.put_nowait(None)
        self._thread.join(self._patience)
        if self._thread.is_alive():
            self._over = True
            self._warn(f"it did not finish within {self._patience:.0f} s")
            self._runs.give_up()  # else W&B would keep this process from ending

    def _work(self) -> None:
        while (trial := self._queue.get()) is not None and not self._closing.is_set():
            if not self._attempt(lambda trial=trial: self._runs.log(trial)):  # type: ignore[misc]
                self._closing.wait()
                return
        self._attempt(self._log_the_rest)

    def _log_the_rest(self) -> None:
        for trial in self._record.trials():  # what was dropped
            self._runs.log(trial)
        if self._exported:
            self._runs.log_export()
        self._runs.close()
        if self._runs.unconfirmed:
            self._warn(f"{self._runs.unconfirmed} runs did not arrive whole, or were not counted yet")

    def _attempt(self, action: Callable[[], None]) -> bool:
        """Whether there is a way to go on."""
        try:
            action()
            if self._runs.where and not self._told_where:
                self._told_where = True
                self._say(f"W&B: {self._runs.where}")
            return True
        except Exception as error:
            if self._over:
                return False
            if not self._runs.online:
                log.warning("W&B stopped (%s); the search goes on without it", _line(error))
                return False
            self._warn(f"{_line(error)}; from here on the search is logged offline")
            self._runs.give_up()
            self._runs.online = False
            return self._attempt(action)

    def _warn(self, what: str) -> None:
        log.warning("W&B: %s. `hpo sync %s` sends what is missing", what, self._record.name)


def sync(record: Record, *, exported: bool) -> tuple[int, str | None]:
    """Send what W&B lacks of a search that nobody runs now; gives how many runs, and where they are. To be logged in
    is the caller's. Raises MachineError at the first failure, with how far it came.
    """
    runs = WandbRuns(record, online=True, finish_seconds=_SYNC_SECONDS)
    trials = record.trials()
    try:
        for trial in trials:
            runs.log(trial)
        if exported:
            runs.log_export()
        runs.close()
    except Exception as error:
        runs.give_up()
        told = f"W&B took {runs.sent} runs, then: {_line(error)}"
        raise MachineError(f"{record.name}: {told}. The same command sends the rest") from error
    if runs.unconfirmed:
        told = f"W&B took {runs.sent} runs; {runs.unconfirmed} did not arrive whole, or were not counted yet"
        raise MachineError(f"{record.name}: {told}. The same command looks again")
    return runs.sent, runs.where


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
