"""A small process that outlives the driver, however it ends, and then ends what is left of its search. Ray leaves
agents behind when its driver is killed, and folders whenever it ends. The driver starts this file as a script."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

TAG_VARIABLE = "PIX2PIX_SEARCH"  # environment variable of everything that a driver starts
_GRACE_SECONDS = 3.0  # Ray may end by itself meanwhile
_GIVE_UP_SECONDS = 30.0  # of killing: a process that waits for a dead disk cannot be ended


class Reaper:
    """The driver's side: a pipe, which is closed when the driver is gone. The folders to delete go through it."""

    def __init__(self) -> None:
        self._tag = os.urandom(8).hex()
        # In its own session Ctrl-C in a terminal does not reach it. It must not keep the driver's output open.
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, self._tag],
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

    def tag_children(self) -> None:
        """Mark every process that is started from now on as one of the search."""
        os.environ[TAG_VARIABLE] = self._tag

    def untag_children(self) -> None:
        os.environ.pop(TAG_VARIABLE, None)

    def kill_children(self) -> None:
        """Kill all marked processes at once. The driver itself is not one of them."""
        _kill(_tagged(self._tag))

    def delete_at_exit(self, folder: str) -> None:
        with suppress(BrokenPipeError):  # the reaper itself was killed
            self._pipe.write(f"{folder}\n")


def _tagged(tag: str) -> list[int]:
    """The processes with this tag."""
    processes, wanted = [], f"{TAG_VARIABLE}={tag}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # it has ended meanwhile, or is another user's
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    processes.append(int(entry.name))
    return processes


def _kill(processes: list[int]) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _reap(tag: str) -> None:
    folders = sys.stdin.read().splitlines()  # returns when the driver is gone
    began = time.monotonic()
    while (left := _tagged(tag)) and (waited := time.monotonic() - began) < _GIVE_UP_SECONDS:
        if waited > _GRACE_SECONDS:
            _kill(left)
        time.sleep(0.1)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _reap(sys.argv[1])
