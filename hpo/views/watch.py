"""`hpo watch`: the live table of a search that another process runs, here or on another machine. It reads, and writes
nothing; nor does it take the lock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from hpo.store import layout, search_results
from hpo.store.layout import STATUS_FILE
from hpo.store.lock import lease_owner, lock_owner
from hpo.store.object_storage import Storage
from hpo.store.record import Record
from hpo.store.replication import open_read_only
from hpo.views.formatting import command_to_continue
from hpo.views.live_table import Display, phase_message
from hpo.views.status_file import Status

_POLL_SECONDS = 1.0
_SHARE = 0.1  # of the time, at most, goes into reading: the record of 1,000 trials takes a second
_SILENCE_SECONDS = 30.0  # of a driver elsewhere, after which it is told; a driver writes every second


def watch(
    runs: Path,
    name: str,
    console: Console,
    wait: Callable[[float], None] = time.sleep,
    storage: Storage | None = None,
) -> None:
    """Until the search is over. Raises ConfigError, RecordError, StorageError."""
    with open_read_only(runs, name, storage, read_only=True, waits=True) as record:
        _watch(record, console, wait)


def _watch(record: Record, console: Console, wait: Callable[[float], None]) -> None:
    name = record.name
    display, looked, told = Display(name, record.search, console), False, ""
    reading, life = _Changes(record.study_file), _Life(record)
    again = command_to_continue(name, record.user_folder.parent, record.storage.address if record.storage else None)
    try:
        while True:
            began = time.monotonic()
            record.sync()
            if reading.on_trial_update():
                record.refresh()
                display.search = record.search
                for trial in record.trials():
                    if trial != display.trials.get(trial.number):
                        display.tell(trial, is_news=looked)
                looked = True
            over = _over(record)
            status, silence = life.status()
            if over:
                status, notice = replace(status, phase="ended"), over
            elif silence:
                notice = f"{silence}; the search can be continued: {again}"
            else:
                notice = ""
            display.draw(status, notice)
            line = notice or phase_message(status)
            if line != told:
                display.say(line or f"{name} is running again")
            if over:
                return
            told = line
            wait(max(_POLL_SECONDS, (time.monotonic() - began) / _SHARE))
    finally:
        display.close()


def _over(record: Record) -> str:
    if not search_results.is_over(record):
        return ""
    if search_results.is_exported(record):
        return f"{record.name} is finished; its winner is in {record.user_folder / layout.EXPORT}"
    return (
        ""
        if search_results.winner(record) is not None
        else f"{record.name} is finished: no trial came to a valid result"
    )


class _Changes:
    """Whether a file was written since it was last asked. None: a database, of which that is not known."""

    def __init__(self, path: Path | None) -> None:
        self._path, self._seen = path, (0, 0)

    def on_trial_update(self) -> bool:
        if self._path is None:
            return True
        found = self._path.stat()
        now = found.st_mtime_ns, found.st_size
        was, self._seen = self._seen, now
        return now != was


class _Life:
    """Whether a driver is at work. On this machine its process tells; of another machine's only what it writes."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._last, self._since = Status(), time.monotonic()

    def status(self) -> tuple[Status, str]:
        """As the driver wrote it, and what there is to say where there is none."""
        storage, folder = self._record.storage, self._record.folder
        self._record.fetch(folder / STATUS_FILE)
        found, now = Status.read(folder) or Status(), time.monotonic()
        if found != self._last:
            self._last, self._since = found, now
        of = lease_owner(storage) if storage else lock_owner(folder)
        if of is None or of.alive is False or (of.alive is None and found.phase == "ended"):
            return Status(phase="ended"), f"{self._record.name} is not running"
        if of.alive is None and now - self._since > _SILENCE_SECONDS:
            return Status(phase="ended"), f"No sign of {of} for {now - self._since:.0f} s"
        return found, ""
