"""How a search ends before its time: by Ctrl-C, by SIGTERM, because its terminal was closed, Ray's head is gone, or its
storage is away or somebody else's. All of them can be continued."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from hpo.exit_codes import EXIT_INTERRUPTED, EXIT_RESUMABLE, EXIT_TERMINATED
from hpo.views.formatting import command_to_continue
from model.common.text import sanitize_for_terminal

_UNWIND_SECONDS = 5.0  # for tables and trackers; without its head Ray itself can only be left


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a search stops, and the exit code that says so."""

    why: str
    code: int


HEAD_GONE = Stop("Ray's head is gone", EXIT_RESUMABLE)
INTERRUPTED, TERMINATED = Stop("Interrupted", EXIT_INTERRUPTED), Stop("Terminated", EXIT_TERMINATED)
_SIGNALLED = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED, signal.SIGHUP: TERMINATED}


class ShutdownHandler:
    """The first reason to stop unwinds the main thread, so that everything is closed; a second signal doesn't wait."""

    def __init__(self, name: str, runs: Path, storage: str | None = None) -> None:
        self._command = command_to_continue(name, runs, storage)
        self._thread = threading.get_ident()
        self._terminals = [stream for stream in (0, 1, 2) if os.isatty(stream)]  # a closed one says that it is none
        self._stop: Stop | None = None
        self._unwinding = self._listening = False

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """They stay while a search unwinds."""
        self._listening = True
        heard = [number for number in _SIGNALLED if number != signal.SIGHUP or not _is_ignored(number)]
        before = {number: signal.signal(number, self._signalled) for number in heard}
        try:
            yield
        finally:
            if not self._unwinding:
                for number, handler in before.items():
                    signal.signal(number, handler)

    def head_is_gone(self) -> None:
        """As below."""
        self.now(HEAD_GONE)

    def now(self, stop: Stop) -> None:
        """Called from another thread: the main one may wait for Ray in C++, which would end the process with 1."""
        if self._unwinding:
            return
        self._stop = stop
        if not self._listening:  # nothing runs yet
            self.leave()
        signal.pthread_kill(self._thread, signal.SIGTERM)
        time.sleep(_UNWIND_SECONDS)
        self.leave()

    def end(self, stop: Stop | None = None) -> int:
        """Say how the search is continued; gives the exit code. Without its head Ray cannot be shut down: leaves."""
        self._unwinding, self._stop = True, self._stop or stop  # other reasons come too late
        if self._stop is HEAD_GONE:
            self.leave()
        stop, message = self._told()
        print(sanitize_for_terminal(message), file=sys.stderr)
        return stop.code

    def leave(self) -> NoReturn:
        """At once. What is left is the reaper's."""
        stop, message = self._told()
        show_cursor = "\x1b[?25h" if os.isatty(2) else ""  # the live table hides it
        os.write(2, f"{show_cursor}{message}\n".encode())  # print might wait for the main thread
        os._exit(stop.code)

    def _told(self) -> tuple[Stop, str]:
        assert self._stop is not None
        return self._stop, f"{self._stop.why}; the search can be continued: {self._command}"

    def _signalled(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _leave(self._terminals)
        if self._unwinding:
            self.leave()
        self._unwinding = True
        self._stop = self._stop or _SIGNALLED[signal.Signals(number)]
        raise KeyboardInterrupt  # SystemExit would end the process at once, with 1, inside Ray's calls


def _is_ignored(number: signal.Signals) -> bool:
    """As nohup arranges it."""
    return signal.getsignal(number) is signal.SIG_IGN


def _leave(terminals: Sequence[int]) -> None:
    """Whatever is written to one that was closed fails, and would end the search in the middle of its saving."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in terminals:
        os.dup2(nowhere, stream)
    os.close(nowhere)
