"""Errors that end a command: bad input, and what the machine does not do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from .text import sanitize_for_terminal

P = ParamSpec("P")
T = TypeVar("T")


class _ToldError(Exception):
    def __init__(self, message: object = "") -> None:
        super().__init__(sanitize_for_terminal(message))


class ConfigError(_ToldError, ValueError):
    """Bad input: something asked for breaks a rule. The message has every broken rule, its value and the nearest right
    thing."""


class MachineError(_ToldError, RuntimeError):
    """The machine, its disk or its cluster does not do what it must."""


class NotSharedError(MachineError):
    """A node does not see what the driver has written for all of them."""


class ErrorCollector:
    """Of one request, wherever they are found: collected, and told at once."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    @contextmanager
    def catch(self) -> Iterator[None]:
        """What is refused inside is told later."""
        try:
            yield
        except ConfigError as error:
            self.add(str(error))

    def attempt(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Call the function. If it raises ConfigError, collect the error and return None."""
        with self.catch():
            return function(*args, **kwargs)
        return None

    def add(self, *mistakes: str) -> None:
        """Each in the words of a ConfigError."""
        self._lines += mistakes

    def include(self, others: ErrorCollector) -> None:
        """Those of a part, after these."""
        self._lines += others._lines

    def __bool__(self) -> bool:
        return bool(self._lines)

    def raise_if_any(self) -> None:
        """Raises ConfigError, if there are any."""
        if self._lines:
            raise self.as_error()

    def as_error(self) -> ConfigError:
        """One error with a line for each different mistake."""
        return ConfigError("\n".join(dict.fromkeys(self._lines)))
