"""Who runs a search, ending that from outside, deleting a search."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hpo.cli.commands import main
from hpo.run.process_control import stop_search
from hpo.store.file_names import LOCK_FILE
from hpo.store.lock import acquire_lock, lock_owner
from hpo.store.record import Record
from model.common.errors import MachineError

HOLDS = (
    "import sys, time; from pathlib import Path; from hpo.store.lock import acquire_lock\n"
    "lock = acquire_lock(Path(sys.argv[1]) / 'first', 'first')\n"
    "print('locked', flush=True); time.sleep(600)"
)


@contextmanager
def driver(runs: Path) -> Iterator[subprocess.Popen[str]]:
    """Has the lock as a search's driver does."""
    command = [sys.executable, "-c", HOLDS, str(runs)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_running_search_is_not_deleted_but_stopped_and_the_command_that_continues_it_is_told(record, runs, capsys):
    with driver(runs) as process:
        assert main(["rm", "first", "--yes", "--runs", str(runs)]) == 2
        assert f"is being run by process {process.pid}" in capsys.readouterr().err
        assert (lock_owner(record.folder).pid, lock_owner(record.folder).alive) == (process.pid, True)
        assert main(["stop", "first", "--runs", str(runs)]) == 0
        assert process.wait(timeout=10) != 0
    assert f"first is stopped; the search can be continued: hpo search first --runs {runs}" in capsys.readouterr().err
    assert lock_owner(record.folder).alive is False
    acquire_lock(record.folder, "first").close()  # it is free


def test_a_search_that_does_not_end_is_told(record, runs, monkeypatch):
    monkeypatch.setattr(os, "kill", lambda *_: None)
    with (
        acquire_lock(record.folder, "first"),
        pytest.raises(MachineError, match="did not stop within 0 s; run `hpo stop first` again"),
    ):
        stop_search(runs, "first", timeout_seconds=0.2)


@pytest.mark.parametrize(
    "written", [f"process {os.getpid()} on {socket.gethostname()}", "", None], ids=["ours", "empty", "none"]
)
def test_a_process_that_has_the_number_of_a_dead_driver_is_left_alone(record, runs, monkeypatch, capsys, written):
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("it was signalled"))  # it is this one
    if written is not None:
        (record.folder / LOCK_FILE).write_text(written)
    assert main(["stop", "first", "--runs", str(runs)]) == 0
    assert capsys.readouterr().err == "first is not running\n"


def test_a_search_of_another_machine_is_not_stopped_from_here(record, runs, capsys):
    (record.folder / LOCK_FILE).write_text(f"process {os.getpid()} on elsewhere")
    assert lock_owner(record.folder).alive is None
    assert main(["stop", "first", "--runs", str(runs)]) == 2
    assert "first: was started by process" in capsys.readouterr().err


def test_a_search_is_deleted_whole_and_its_neighbour_stays(record, runs, search):
    Record.create(runs, "second", search)
    assert main(["rm", "first", "--yes", "--runs", str(runs)]) == 0
    assert [path.name for path in runs.iterdir()] == ["second"]


@pytest.mark.parametrize(("answer", "left"), [("y", []), ("n", ["first"]), ("", ["first"])])
def test_deleting_asks_first(record, runs, monkeypatch, answer, left):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: answer)
    assert main(["rm", "first", "--runs", str(runs)]) == 0
    assert [path.name for path in runs.iterdir()] == left


def test_nothing_is_deleted_unasked_or_behind_a_link(record, runs, tmp_path, capsys):
    assert main(["rm", "first", "--runs", str(runs)]) == 2  # pytest's stdin is no terminal
    assert "--yes" in capsys.readouterr().err
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "first").symlink_to(record.folder)
    assert main(["rm", "first", "--yes", "--runs", str(tmp_path / "links")]) == 2
    assert Record(runs, "first").id == record.id
