"""How a search ends before it is done: Ctrl-C, SIGTERM, a closed terminal, Ray's head gone, the storage unreachable or
taken over by another driver. All of them can be continued."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import NoReturn

from hpo.exit_codes import EXIT_INTERRUPTED, EXIT_RESUMABLE, EXIT_TERMINATED
from hpo.views.formatting import command_to_continue
from model.common.text import sanitize_for_terminal

_UNWIND_SECONDS = 5.0  # for tables and trackers to close; Ray cannot be shut down without its head


@dataclass(frozen=True, slots=True)
class StopReason:
    """Why a search stops, and the exit code for it."""

    text: str
    exit_code: int


HEAD_GONE = StopReason("Ray's head is gone", EXIT_RESUMABLE)
INTERRUPTED, TERMINATED = StopReason("Interrupted", EXIT_INTERRUPTED), StopReason("Terminated", EXIT_TERMINATED)
_OF_SIGNAL = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED, signal.SIGHUP: TERMINATED}


class State(Enum):
    """See ShutdownHandler."""

    IDLE = "no signal handlers; nothing runs that must be closed"
    RUNNING = "signal handlers are installed"
    UNWINDING = "a reason is set, and the main thread closes everything"


class ShutdownHandler:
    """Ends a search in an orderly way for the first reason, and at once for a second signal.

    | state     | event                              | what happens                                     | next state |
    |-----------|------------------------------------|--------------------------------------------------|------------|
    | IDLE      | `on_signals()` is entered          | handlers are installed                           | RUNNING    |
    | IDLE      | `request()`, in another thread     | `exit_now()`                                     |            |
    | RUNNING   | a signal                           | KeyboardInterrupt in the main thread             | UNWINDING  |
    | RUNNING   | `request()`, in another thread     | as SIGTERM, but `exit_now()` 5 s later           | UNWINDING  |
    | RUNNING   | `on_signals()` is left             | the former handlers are back                     | IDLE       |
    | any       | `finish()`, in the main thread     | the message; its caller returns the exit code    | UNWINDING  |
    | UNWINDING | another signal                     | `exit_now()`                                     |            |
    | UNWINDING | `request()`                        | nothing: the first reason stays                  | UNWINDING  |
    """

    def __init__(self, name: str, runs: Path, storage: str | None = None) -> None:
        self._command = command_to_continue(name, runs, storage)
        self._main_thread = threading.get_ident()
        self._terminals = [stream for stream in (0, 1, 2) if os.isatty(stream)]  # a closed terminal is no longer one
        self._reason: StopReason | None = None
        self._state = State.IDLE

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Handle signals inside. The handlers stay while a search unwinds."""
        hangup_is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # by nohup
        numbers = [number for number in _OF_SIGNAL if number != signal.SIGHUP or not hangup_is_ignored]
        former = {number: signal.signal(number, self._handle_signal) for number in numbers}
        self._state = State.RUNNING
        try:
            yield
        finally:
            if self._state is State.RUNNING:
                for number, handler in former.items():
                    signal.signal(number, handler)
                self._state = State.IDLE

    def request(self, reason: StopReason) -> None:
        """Stop the search. Called from another thread: the main thread may wait for Ray in C++, which would end the
        process with exit code 1."""
        if self._state is State.UNWINDING:
            return
        self._reason = reason
        if self._state is State.IDLE:
            self.exit_now()
        signal.pthread_kill(self._main_thread, signal.SIGTERM)
        time.sleep(_UNWIND_SECONDS)
        self.exit_now()

    def finish(self, reason: StopReason = INTERRUPTED) -> int:
        """Print how the search is continued, and return the exit code; an earlier reason counts. Without its head Ray
        cannot be shut down: exits."""
        self._state, self._reason = State.UNWINDING, self._reason or reason
        if self._reason is HEAD_GONE:
            self.exit_now()
        print(sanitize_for_terminal(self._message(self._reason)), file=sys.stderr)
        return self._reason.exit_code

    def exit_now(self) -> NoReturn:
        """End the process at once. The reaper ends what it leaves behind."""
        reason = self._reason or INTERRUPTED
        show_cursor = "\x1b[?25h" if os.isatty(2) else ""  # the live table hides it
        os.write(2, f"{show_cursor}{self._message(reason)}\n".encode())  # print might wait for the main thread
        os._exit(reason.exit_code)

    def _message(self, reason: StopReason) -> str:
        return f"{reason.text}; the search can be continued: {self._command}"

    def _handle_signal(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGHUP:  # writing to a closed terminal fails, and would end the search while it saves
            null = os.open(os.devnull, os.O_RDWR)
            for stream in self._terminals:
                os.dup2(null, stream)
            os.close(null)
        if self._state is State.UNWINDING:
            self.exit_now()
        self._state = State.UNWINDING
        self._reason = self._reason or _OF_SIGNAL[signal.Signals(number)]
        raise KeyboardInterrupt  # SystemExit would end the process at once, with 1, inside Ray's calls
