"""In place of SIGKILL: the driver dies when the database is about to be written, and the transaction with it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy


class Killed(BaseException):
    """Not an Exception, so that nothing in between handles it."""


@contextmanager
def killed_at_write(number: int) -> Iterator[None]:
    """Raises Killed instead of the writing statement of that number, from 0; nothing where there are fewer."""
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
    """Each transaction that writes is killed when it is first tried. Gives the last statement of each."""
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
