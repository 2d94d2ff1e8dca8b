"""Our methods that Ray Tune calls."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class FatalDriverError(BaseException):
    """Carries an error of ours through Tune: that takes an Exception for the trial's, and goes on."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def propagate_errors(method: Callable[P, R]) -> Callable[P, R]:
    """The method, with its errors carried."""

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except Exception as error:
            raise FatalDriverError(error) from error

    return call
