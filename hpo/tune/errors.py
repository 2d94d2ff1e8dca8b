"""Carries errors of the driver through Ray Tune, which takes every Exception for the trial's and continues."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class FatalDriverError(BaseException):
    """Wraps an error of the driver. Tune does not catch a BaseException; hpo.run unwraps it."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def propagate_errors(method: Callable[P, R]) -> Callable[P, R]:
    """Decorate a method that Tune calls: its errors end the search."""

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except Exception as error:
            raise FatalDriverError(error) from error

    return call
