"""Logs a search to W&B from one thread of the driver, so that the search never waits. Trials never import wandb.

Runs are made from the record (wandb_runs.py), so each call also logs what an earlier call did not. After the first
failure of a server the search is logged offline, and `hpo sync` sends what the server lacks.
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
_FINISH_SECONDS = 30.0  # to send the rest of a trial's run when it ends
_CLOSE_SECONDS = 60.0  # to send everything at the end of a search
_EXPORT_SECONDS = 120.0  # the same with the exported generator: 130 MB at the slides' width
_SYNC_SECONDS = 3_600.0  # per run of `hpo sync`


class Tracker:
    """A listener. A full queue drops a trial, and a later call logs it. `print_line` prints the runs' address."""

    def __init__(self, record: Record, print_line: Callable[[str], None] = lambda _: None) -> None:
        self._record, self._print_line = record, print_line
        self._runs = WandbRuns(record, online=record.search.wandb == "online", finish_seconds=_FINISH_SECONDS)
        self._close_seconds = _CLOSE_SECONDS
        self._closing, self._abandoned = threading.Event(), False
        self._exported = self._url_printed = False
        self._queue: queue.Queue[FrozenTrial | None] = queue.Queue(_QUEUE_SIZE)
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def on_trial_update(self, trial: FrozenTrial) -> None:
        """See Listener."""
        try:
            self._queue.put_nowait(trial)
        except queue.Full:
            log.debug("W&B is behind; trial %d is logged later", trial.number)

    def export(self) -> None:
        """The search has its export, which `close` logs, too."""
        self._exported = True
        self._runs.finish_seconds = self._close_seconds = _EXPORT_SECONDS

    def close(self) -> None:
        """Log the rest and close every run, in bounded time."""
        self._closing.set()
        with suppress(queue.Full):  # a full queue wakes the thread anyway
            self._queue.put_nowait(None)
        self._thread.join(self._close_seconds)
        if self._thread.is_alive():
            self._abandoned = True
            self._warn(f"it did not finish within {self._close_seconds:.0f} s")
            self._runs.give_up()  # or W&B would keep this process running

    def _work(self) -> None:
        while (trial := self._queue.get()) is not None and not self._closing.is_set():
            if not self._attempt(lambda trial=trial: self._runs.log(trial)):  # type: ignore[misc]
                self._closing.wait()
                return
        self._attempt(self._log_the_rest)

    def _log_the_rest(self) -> None:
        self._runs.log_all(self._record.trials(), exported=self._exported)  # some trials were dropped
        if self._runs.unconfirmed:
            self._warn(f"{self._runs.unconfirmed} runs are incomplete on the server, or not counted yet")

    def _attempt(self, action: Callable[[], None]) -> bool:
        """Run an action, a second time offline if the server fails. Returns whether logging can continue."""
        try:
            action()
            if self._runs.url and not self._url_printed:
                self._url_printed = True
                self._print_line(f"W&B: {self._runs.url}")
            return True
        except Exception as error:
            if self._abandoned:
                return False
            if not self._runs.online:
                log.warning("W&B failed (%s); the search continues without it", _first_line(error))
                return False
            self._warn(f"{_first_line(error)}; from now on the search is logged offline")
            self._runs.give_up()
            self._runs.online = False
            return self._attempt(action)

    def _warn(self, what: str) -> None:
        log.warning("W&B: %s. `hpo sync %s` sends what is missing", what, self._record.name)


def sync(record: Record, *, exported: bool) -> tuple[int, str | None]:
    """Send what W&B lacks; return how many runs were sent, and the address of their page. The caller has logged in.

    Raises:
        MachineError: sending failed, or runs are incomplete. It says how many were sent.
    """
    runs = WandbRuns(record, online=True, finish_seconds=_SYNC_SECONDS)
    trials = record.trials()
    try:
        runs.log_all(trials, exported=exported)
    except Exception as error:
        runs.give_up()
        raise MachineError(
            f"{record.name}: W&B took {runs.sent} runs, then failed ({_first_line(error)}). "
            "The same command sends the rest"
        ) from error
    if runs.unconfirmed:
        raise MachineError(
            f"{record.name}: W&B took {runs.sent} runs; {runs.unconfirmed} are incomplete on the server, or not "
            "counted yet. The same command checks again"
        )
    return runs.sent, runs.url


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
