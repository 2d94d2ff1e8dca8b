"""Outlives the driver, however it ends, and then ends what is left of its search. The driver starts this file as a
small process of its own; Ray leaves agents behind when its driver is killed, and folders whenever it ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MARK = "PIX2PIX_SEARCH"  # environment variable of everything that a driver starts
_PATIENCE = 3.0  # seconds that Ray has to end by itself
_GIVE_UP = 30.0  # seconds of killing: a process that waits for a dead disk cannot be ended


class Reaper:
    """The driver's side: a pipe whose other end is closed when the driver is gone. The folders to remove go over it."""

    def __init__(self) -> None:
        self._mark = os.urandom(8).hex()
        command = [sys.executable, "-I", "-S", __file__, self._mark]
        # A session of its own: Ctrl-C in a terminal is not for it. And it must not keep the driver's output open.
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
            text=True,
            bufsize=1,
        )
        assert process.stdin is not None
        self._process, self._pipe = process, process.stdin

    @contextmanager
    def tagging_children(self) -> Iterator[None]:
        """What is started in here belongs to the search."""
        os.environ[MARK] = self._mark
        try:
            yield
        finally:
            del os.environ[MARK]

    def ends_all(self) -> None:
        """What was started while marking, at once; the driver itself stays."""
        _kill(_marked(self._mark))

    def delete_at_exit(self, folder: str) -> None:
        """Once the driver is gone."""
        with suppress(BrokenPipeError):  # somebody killed it
            self._pipe.write(f"{folder}\n")


def _marked(mark: str) -> list[int]:
    found, wanted = [], f"{MARK}={mark}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # ended meanwhile, or not ours
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def _kill(processes: list[int]) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _wait_for_the_end(mark: str) -> None:
    folders = sys.stdin.read().splitlines()  # until the driver is gone
    began = time.monotonic()
    while (left := _marked(mark)) and (waited := time.monotonic() - began) < _GIVE_UP:
        if waited > _PATIENCE:
            _kill(left)
        time.sleep(0.1)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _wait_for_the_end(sys.argv[1])
