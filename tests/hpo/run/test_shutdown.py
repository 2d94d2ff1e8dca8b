"""Signals without a search."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

WAITS = """
import signal, sys, time
from pathlib import Path
from hpo.run.shutdown import ShutdownHandler

shutdown = ShutdownHandler("first", Path("runs"))
try:
    with shutdown.on_signals():
        print("ready", flush=True)
        while True:
            time.sleep(0.05)
except KeyboardInterrupt:
    print("closing", flush=True)  # into a terminal that is gone this is an error
    code = shutdown.finish()
    Path(sys.argv[1]).write_text(str(code))
"""
ROOT = Path(__file__).parents[3]


def test_a_closed_terminal_ends_a_search_as_sigterm_does(tmp_path):
    """It is told with SIGHUP, and nothing can be written to it any more."""
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-c", WAITS, str(tmp_path / "code")])
    said = b""
    while b"ready" not in said:
        said += os.read(terminal, 1000)
    os.close(terminal)
    os.waitpid(process, 0)
    assert (tmp_path / "code").read_text() == "143"


def test_under_nohup_a_closed_terminal_is_not_heard(tmp_path):
    started = subprocess.Popen(
        ["nohup", sys.executable, "-c", WAITS, str(tmp_path / "code")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert started.stdout
        assert started.stdout.readline() == "ready\n"
        started.send_signal(signal.SIGHUP)
        started.send_signal(signal.SIGINT)
        assert started.stdout.readline() == "closing\n"
        started.wait(30)
        assert (tmp_path / "code").read_text() == "130"
    finally:
        started.kill()
