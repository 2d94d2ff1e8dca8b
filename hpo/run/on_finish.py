"""`--on-finish COMMAND`: what a user wants done once a search has ended by itself, with its result at hand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

TIMEOUT_SECONDS = 600.0  # a mail, a message, an upload; whatever takes longer belongs into the background


def run(command: str, result: Mapping[str, Any], timeout: float = TIMEOUT_SECONDS) -> None:
    """Hand the command to the shell, as it was written for one. What the search found reaches it on stdin alone, as a
    JSON document, so that no name or error text is ever read as shell. Its output goes to stderr; its failure is told
    there, and changes nothing.
    """
    try:
        process = subprocess.Popen(command, shell=True, stdin=subprocess.PIPE, stdout=2, text=True, process_group=0)
    except OSError as error:
        _tell(f"did not start ({error})")
        return
    try:
        process.communicate(json.dumps(result), timeout)
    except subprocess.TimeoutExpired:
        _kill(process)
        _tell(f"was ended after {timeout:g} s")
    except BaseException:  # Ctrl-C goes to our process group, not to its
        _kill(process)
        raise
    else:
        if process.returncode:
            _tell(f"ended with exit code {process.returncode}")


def _kill(process: subprocess.Popen[str]) -> None:
    """The shell, and what it started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tell(what: str) -> None:
    print(f"--on-finish: the command {what}; the search is not affected", file=sys.stderr)
