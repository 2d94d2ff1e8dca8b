"""`hpo watch`: the live table of a search that another process or another machine runs. It writes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from hpo.store import file_names, search_results
from hpo.store.file_names import STATUS_FILE
from hpo.store.lock import lease_owner, lock_owner
from hpo.store.object_storage import Storage
from hpo.store.record import Record
from hpo.store.study_replication import open_read_only
from hpo.views.formatting import command_to_continue
from hpo.views.live_table import Display, phase_message
from hpo.views.status_file import Status

_POLL_SECONDS = 1.0
_READING_SHARE = 0.1  # of the time, at most, is spent on reading: the record of 1,000 trials takes a second
_SILENCE_SECONDS = 30.0  # after which a driver on another machine is reported as silent; it writes every second


def watch(
    runs: Path,
    name: str,
    console: Console,
    wait: Callable[[float], None] = time.sleep,
    storage: Storage | None = None,
) -> None:
    """Show a search until it is over; `wait` gets the seconds until the next reading.

    Raises:
        ConfigError: there is no such search.
        RecordError, StorageError: its record or its storage cannot be read.
    """
    with open_read_only(runs, name, storage, read_only=True, waits=True) as record:
        _watch(record, console, wait)


def _watch(record: Record, console: Console, wait: Callable[[float], None]) -> None:
    name = record.name
    display, first_look, printed = Display(name, record.search, console), True, ""
    version, driver = None, _DriverMonitor(record)
    command = command_to_continue(name, record.user_folder.parent, record.storage.address if record.storage else None)
    try:
        while True:
            began = time.monotonic()
            record.sync()
            before, version = version, _file_version(record.study_file)
            if version != before:
                record.refresh()
                display.search = record.search
                for trial in record.trials():
                    if trial != display.trials.get(trial.number):
                        display.update(trial, is_new=not first_look)
                first_look = False
            end = _end_message(record)
            status, problem = driver.status()
            if end:
                status, notice = replace(status, phase="ended"), end
            else:
                notice = f"{problem}; the search can be continued: {command}" if problem else ""
            display.draw(status, notice)
            line = notice or phase_message(status, record.search.objective)
            if line != printed:
                display.print_line(line or f"{name} is running again")
            if end:
                return
            printed = line
            wait(max(_POLL_SECONDS, (time.monotonic() - began) / _READING_SHARE))
    finally:
        display.close()


def _end_message(record: Record) -> str:
    """How the search ended; empty while it has not."""
    if not search_results.is_over(record):
        return ""
    if search_results.is_exported(record):
        return f"{record.name} is finished; its winner is in {record.user_folder / file_names.EXPORT}"
    if search_results.winner(record) is None:
        return f"{record.name} is finished: no trial produced a valid result"
    return ""


def _file_version(path: Path | None) -> object:
    """A value that changes when the file is written; without a path, for a database, it always changes."""
    if path is None:
        return object()
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


class _DriverMonitor:
    """Whether a driver runs the search: by its process on this machine, by what it writes on another one."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._last, self._since = Status(), time.monotonic()

    def status(self) -> tuple[Status, str]:
        """The driver's last Status, and what is wrong if no driver seems to run; else an empty text."""
        storage, folder = self._record.storage, self._record.folder
        self._record.fetch(folder / STATUS_FILE)
        status, now = Status.read(folder) or Status(), time.monotonic()
        if status != self._last:
            self._last, self._since = status, now
        owner = lease_owner(storage) if storage else lock_owner(folder)
        if owner is None or owner.alive is False or (owner.alive is None and status.phase == "ended"):
            return Status(phase="ended"), f"{self._record.name} is not running"
        if owner.alive is None and now - self._since > _SILENCE_SECONDS:
            return Status(phase="ended"), f"No sign of life from {owner} for {now - self._since:.0f} s"
        return status, ""
