"""Drivers that die just before they write the study, or in the middle of a transaction."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy


class Killed(BaseException):
    """Not an Exception, so that no caller handles it."""


@contextmanager
def killed_at_write(number: int) -> Iterator[None]:
    """Raise Killed instead of the writing statement with this number, from 0, if there are as many."""
    writes = 0

    def write(_statement: str) -> None:
        nonlocal writes
        writes += 1
        if writes > number:
            raise Killed

    with watched(write, lambda: True):
        yield


@contextmanager
def every_write_killed_once() -> Iterator[set[str]]:
    """Kill each writing transaction at its first attempt. Yields the last statement of each."""
    kills: set[str] = set()
    last = ""

    def write(statement: str) -> None:
        nonlocal last
        last = re.sub(r"\d{4}-\d\d-\d\d [\d:.]+", "now", statement)

    def may_commit() -> bool:
        nonlocal last
        statement, last = last, ""
        is_first_try = bool(statement) and statement not in kills
        kills.add(statement)
        return not is_first_try

    with watched(write, may_commit):
        yield kills


@contextmanager
def watched(write: Callable[[str], None], may_commit: Callable[[], bool]) -> Iterator[None]:
    def before_execute(_connection: Any, _cursor: Any, sql: str, parameters: Any, *_: Any) -> None:
        if sql.lstrip().startswith(("INSERT", "UPDATE", "DELETE")):
            write(f"{sql} {parameters}")

    def before_commit(connection: sqlalchemy.Connection) -> None:
        if not may_commit():
            connection.connection.rollback()  # what the database does when its writer is gone
            raise Killed

    events = {"before_cursor_execute": before_execute, "commit": before_commit}
    for name, listener in events.items():
        sqlalchemy.event.listen(sqlalchemy.Engine, name, listener)
    try:
        yield
    finally:
        for name, listener in events.items():
            sqlalchemy.event.remove(sqlalchemy.Engine, name, listener)


DIES_WRITING = (
    "import os, signal, sqlite3, sys; study = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
    "study.execute('PRAGMA cache_size=1'); study.execute('BEGIN')\n"
    "study.execute('UPDATE trial_user_attributes SET value_json = value_json || 1')\n"
    "os.kill(os.getpid(), signal.SIGKILL)"
)


def killed_while_writing(study: Path) -> Path:
    """Kill a process that has half of a transaction on disk. Returns the journal that it leaves."""
    died, journal = subprocess.run([sys.executable, "-c", DIES_WRITING, str(study)], check=False), f"{study}-journal"
    assert died.returncode == -signal.SIGKILL
    assert Path(journal).stat().st_size
    return Path(journal)
