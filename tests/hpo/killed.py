"""In place of SIGKILL: the driver dies when the database is about to be written, and the transaction with it."""

from __future__ import annotations

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

    def write() -> None:
        nonlocal writes
        writes += 1
        if writes > number:
            raise Killed

    with _watched(write, lambda: None):
        yield


@contextmanager
def every_write_killed_once() -> Iterator[list[Killed]]:
    """Each transaction that writes is killed when it is first tried. Gives the kills."""
    kills: list[Killed] = []
    spared = wrote = False

    def write() -> None:
        nonlocal spared, wrote
        if not spared:
            spared = True
            kills.append(Killed())
            raise kills[-1]
        wrote = True

    def commit() -> None:
        nonlocal spared, wrote
        if wrote:
            spared = wrote = False

    with _watched(write, commit):
        yield kills


@contextmanager
def _watched(write: Callable[[], None], commit: Callable[[], None]) -> Iterator[None]:
    def before_execute(_connection: Any, _cursor: Any, sql: str, *_: Any) -> None:
        if sql.lstrip().startswith(("INSERT", "UPDATE", "DELETE")):
            write()

    def before_commit(_connection: Any) -> None:
        commit()

    events = {"before_cursor_execute": before_execute, "commit": before_commit}
    for name, listener in events.items():
        sqlalchemy.event.listen(sqlalchemy.Engine, name, listener)
    try:
        yield
    finally:
        for name, listener in events.items():
            sqlalchemy.event.remove(sqlalchemy.Engine, name, listener)
