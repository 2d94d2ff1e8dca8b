"""Retries with growing pauses and one total timeout, and a log of when a service went away and came back."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 5.0  # each pause is twice the previous one


def retry(
    operation: Callable[[], T],
    *,
    is_transient: Callable[[Exception], bool],
    timeout_seconds: float,
    on_failure: Callable[[Exception], None] = lambda _: None,
) -> T:
    """Call `operation` until it succeeds.

    Args:
        is_transient: whether the same operation may succeed later.
        timeout_seconds: for all attempts and pauses together; 0 means a single attempt.
        on_failure: called after each transient failure, also after the last one.

    Raises:
        The operation's own error: at once if it is not transient, else when no time is left for another attempt.
    """
    end, pause = time.monotonic() + timeout_seconds, _FIRST_PAUSE_SECONDS
    while True:
        try:
            return operation()
        except Exception as error:
            if not is_transient(error):
                raise
            on_failure(error)
            if time.monotonic() + pause > end:
                raise
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


class Outage:
    """Whether a service is away. Threads may share it. It logs the start and the end of an outage once."""

    def __init__(self, quiet_seconds: float = 0.0) -> None:
        """quiet_seconds: no second warning within this time, for a service that comes and goes all the time."""
        self._quiet_seconds = quiet_seconds
        self._since: float | None = None
        self._warned = -math.inf
        self._lock = threading.Lock()

    @property
    def is_on(self) -> bool:
        """Whether the last attempt of any thread failed."""
        return self._since is not None

    def started(self, name: str, reason: str, timeout_seconds: float) -> None:
        """An attempt failed."""
        with self._lock:
            if self._since is not None:
                return
            self._since = time.monotonic()
            if timeout_seconds and self._since - self._warned > self._quiet_seconds:
                self._warned = self._since
                log.warning("%s: %s; waiting, %g s at most", name, reason, timeout_seconds)

    def ended(self, name: str) -> None:
        """An attempt succeeded."""
        with self._lock:
            if self._since is not None and self._warned >= self._since:
                log.warning("%s: is back after %.0f s", name, time.monotonic() - self._since)
            self._since = None
