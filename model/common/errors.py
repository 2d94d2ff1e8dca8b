"""Errors that end a command: bad input, and failures of the machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from .text import sanitize_for_terminal

P = ParamSpec("P")
T = TypeVar("T")


class _MessageError(Exception):
    def __init__(self, message: object = "") -> None:
        super().__init__(sanitize_for_terminal(message))


class ConfigError(_MessageError, ValueError):
    """The input breaks a rule. The message has all broken rules, each with its value and a valid alternative."""


class MachineError(_MessageError, RuntimeError):
    """The machine, its disk or its cluster failed."""


class NotSharedError(MachineError):
    """A node cannot read a file that the driver wrote for all nodes."""


class ErrorCollector:
    """Collects the errors of a request, to report all of them at once."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def attempt(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Call the function. If it raises ConfigError, collect the error and return None."""
        try:
            return function(*args, **kwargs)
        except ConfigError as error:
            self.add(str(error))
            return None

    def add(self, *messages: str) -> None:
        """Add messages in the words of a ConfigError."""
        self._lines += messages

    def include(self, others: ErrorCollector) -> None:
        """Append the errors of another collector."""
        self._lines += others._lines

    def __bool__(self) -> bool:
        return bool(self._lines)

    def raise_if_any(self) -> None:
        """Raise ConfigError if there are errors."""
        if self._lines:
            raise self.as_error()

    def as_error(self) -> ConfigError:
        """One ConfigError, with a line for each different error."""
        return ConfigError("\n".join(dict.fromkeys(self._lines)))
