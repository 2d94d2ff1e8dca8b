"""`--on-finish COMMAND`: runs a command of the user once a search has ended by itself, with the result on stdin."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from hpo.exit_codes import EXIT_DONE
from hpo.store import search_results
from hpo.store.record import Record
from model.common.errors import MachineError

TIMEOUT_SECONDS = 600.0  # enough for a mail or an upload; anything longer should run in the background


def run_on_finish(record: Record, code: int, reason: str) -> None:
    """Run the command of --on-finish, if there is one; code: the exit code of the search."""
    if not record.search.on_finish:
        return
    try:
        result = search_results.document(record)
        export = search_results.export_document(record) if code == EXIT_DONE else None
    except (MachineError, OSError):  # perhaps the failure that ended the search
        result, export = {"name": record.name, "id": record.id}, None
    run(record.search.on_finish, {**result, "exit_code": code, "reason": reason, "export": export})


def run(command: str, result: Mapping[str, Any], timeout: float = TIMEOUT_SECONDS) -> None:
    """Run a shell command with the result as a JSON document on stdin, so that no name or error text is read as shell.

    Its output goes to stderr. Its failure is printed there and changes nothing.
    """
    try:
        process = subprocess.Popen(command, shell=True, stdin=subprocess.PIPE, stdout=2, text=True, process_group=0)
    except OSError as error:
        _print(f"did not start ({error})")
        return
    try:
        process.communicate(json.dumps(result), timeout)
    except subprocess.TimeoutExpired:
        _kill(process)
        _print(f"was ended after {timeout:g} s")
    except BaseException:  # Ctrl-C reaches our process group, not that of the command
        _kill(process)
        raise
    else:
        if process.returncode:
            _print(f"ended with exit code {process.returncode}")


def _kill(process: subprocess.Popen[str]) -> None:
    """Kill the shell and everything that it started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _print(outcome: str) -> None:
    print(f"--on-finish: the command {outcome}; the search is not affected", file=sys.stderr)
