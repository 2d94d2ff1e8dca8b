"""`hpo watch`: the live table of a search that another process runs, without a byte written."""

from __future__ import annotations

import io
import json
import math
import socket
import sqlite3
from dataclasses import asdict
from pathlib import Path

import pytest
from curves import controller, counted, report, train
from fuzzing import as_json, assert_readable, damaged, json_near
from hypothesis import example, given
from hypothesis import strategies as st
from killed import killed_while_writing
from rich.console import Console

from hpo.cli.commands import main
from hpo.policy import leaderboard
from hpo.store import search_results
from hpo.store.file_names import LOCK_FILE, STATUS_FILE, STUDY_FILE
from hpo.store.lock import acquire_lock, lock_owner
from hpo.store.record import Record
from hpo.store.search_file import RecordError
from hpo.store.study_database import describe_error
from hpo.views import watch
from hpo.views.live_table import render
from hpo.views.progress import Progress
from hpo.views.status_file import Status
from model.common.errors import ConfigError


def contents(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


class Elsewhere:
    """In place of waiting: a driver goes on by a trial, and at the end exports. Nothing but that changes the folder."""

    def __init__(self, record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lock = acquire_lock(record.folder, "first")
        self.record, self.exported, self.waits = record, False, 0
        self.progress = Progress(record.search, "first", 1, Console(quiet=True), folder=record.folder)
        self.progress._closed.set()  # its thread would write, too
        self.controller = controller(record, self.progress)
        monkeypatch.setattr(search_results, "is_exported", lambda _: self.exported)
        self.before = contents(record.folder)

    def wait(self, _: float) -> None:
        assert contents(self.record.folder) == self.before
        self.waits += 1
        trial = self.controller.next_trial()
        if trial:
            train(self.controller, trial.number, [])
        else:
            self.exported = True
        self.progress._draw()
        self.before = contents(self.record.folder)


def test_each_event_is_told_and_it_ends_with_the_search(record, runs, monkeypatch):
    driver, console = Elsewhere(record, monkeypatch), Console(file=io.StringIO(), width=80)
    watch.watch(runs, "first", console, driver.wait)
    *lines, last = console.file.getvalue().splitlines()
    assert driver.waits == 9  # eight trials, the export
    told = [line.split(": ")[0] for line in lines]
    for trial in record.trials():  # began, each epoch, ended
        assert told.count(f"trial {trial.number}") == 2 + len(trial.intermediate_values)
    assert last == f"first is finished; its winner is in {record.folder}/export"


def test_the_table_is_the_drivers_own(record, runs, monkeypatch):
    driver = Elsewhere(record, monkeypatch)
    shown = Console(file=io.StringIO(), width=80, height=30, force_terminal=True)
    watch.watch(runs, "first", shown, driver.wait)
    finished = shown.file.getvalue().rpartition("/8 trials: ")[2]
    assert counted(record.trials()) in finished
    assert f"best: trial {search_results.winner(record)}" in finished


def test_a_search_that_nobody_runs_is_told_once_and_so_is_its_return(record, runs, monkeypatch):
    trial = controller(record).next_trial()
    (record.folder / LOCK_FILE).write_text("process 1 on elsewhere")
    Status(phase="ended").write(record.folder)
    console, waits = Console(file=io.StringIO(), width=200), []

    def wait(_: float) -> None:
        waits.append(console.file.getvalue().count("is not running"))
        if len(waits) == 2:
            Status(phase="trials", running={trial.number: 0.5}).write(record.folder)
        if len(waits) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch.watch(runs, "first", console, wait)
    assert waits == [1, 1, 1]
    said = console.file.getvalue()
    assert f"first is not running; the search can be continued: hpo search first --runs {runs}\n" in said
    assert said.endswith("first is running again\n")


def test_a_driver_elsewhere_that_falls_silent_is_told(record, runs, monkeypatch):
    (record.folder / LOCK_FILE).write_text("process 1 on elsewhere")
    Status().write(record.folder)
    clock = [0.0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: clock[0])
    life = watch._DriverMonitor(record)
    assert life.status() == (Status(), "")
    clock[0] = 31.0
    assert life.status()[1] == "No sign of life from process 1 on elsewhere for 31 s"
    Status(seconds=32.0).write(record.folder)
    assert life.status()[1] == ""


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"running": {"x": 1}}', '{"running": {}, "new": 1}'])
def test_a_status_of_another_version_or_torn_is_none(record, text):
    (record.folder / STATUS_FILE).write_text(text)
    assert Status.read(record.folder) is None


def test_a_status_comes_back_as_it_was(tmp_path):
    status = Status(phase="final training", running={3: 1.5}, trial=7, done=2, of=32, report=report(2, 0.9).as_dict())
    status.write(tmp_path)
    assert Status.read(tmp_path) == status
    assert [path.name for path in tmp_path.iterdir()] == [STATUS_FILE]


def test_a_record_that_is_watched_cannot_be_written(done, runs):
    watched = Record(runs, "first", read_only=True)
    with pytest.raises(RecordError) as refused:
        watched.set_metadata("a", 1)
    assert "readonly database" in describe_error(refused.value.__cause__)
    with sqlite3.connect(done.folder / STUDY_FILE) as other:  # and its driver is not in its way, nor it in the driver's
        other.execute("BEGIN IMMEDIATE")
        watched.refresh()
    assert len(watched.trials()) == 8


def test_what_a_driver_left_half_written_is_not_mended_by_who_watches(done, runs, capsys):
    killed_while_writing(done.study_file)
    before = contents(done.folder)
    assert main(["watch", "first", "--runs", str(runs)]) == 4
    assert (
        "left mid-write by a crashed driver; run `hpo show first` once to roll the journal back"
        in capsys.readouterr().err
    )
    assert contents(done.folder) == before
    assert main(["show", "first", "--runs", str(runs)]) == 0
    assert len(Record(runs, "first", read_only=True).trials()) == 8


def test_ctrl_c_ends_watching_and_nothing_else(record, runs, monkeypatch, capsys):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watch, "watch", interrupted)
    assert main(["watch", "first", "--runs", str(runs)]) == 130
    assert capsys.readouterr().err == "The table has ended; the search continues.\n"


def test_show_has_the_tables_headline(done, runs, capsys):
    assert main(["show", "first", "--runs", str(runs)]) == 0
    out = capsys.readouterr().out
    assert f"first  8/8 trials: {counted(done.trials())}" in out
    epochs = sum(len(trial.intermediate_values) for trial in done.trials())
    assert f"{epochs} of 32 epochs were run" in out
    assert main(["show", "first", "--runs", str(runs), "--json"]) == 0
    winner = json.loads(capsys.readouterr().out)["winner"]
    assert f"winner: trial {winner}, SSIM {leaderboard.best_report(done.trial(winner), 'ssim').ssim:.4f}" in out


STATUS = {**asdict(Status(seconds=3.0, trial=1, of=3, report=report(2, 0.9).as_dict())), "running": {"3": 1.5}}


@given(
    content=json_near(STATUS),
    phase=st.sampled_from(["trials", "final training", "finalists", "export", "ended", "soon"]),
)
@example(content=b"[" * 100_000, phase="trials")
@example(content=as_json({**STATUS, "seconds": math.inf}), phase="trials")
@example(content=as_json({**STATUS, "seconds_left": "soon"}), phase="trials")
@example(content=as_json({**STATUS, "report": {"ssim": 1}}), phase="final training")
def test_whatever_a_status_says_it_is_drawn_or_none(undisturbed, tmp_path_factory, content, phase):
    folder = tmp_path_factory.mktemp("fuzzed")
    (folder / STATUS_FILE).write_bytes(content.replace(b'"trials"', f'"{phase}"'.encode()))
    status = Status.read(folder)
    if status is not None:
        shown = render("first", undisturbed.search, undisturbed.trials(), status, width=80, height=30)
        Console(file=io.StringIO()).print(shown)


@given(content=st.binary() | damaged(f"process 1 on {socket.gethostname()}".encode()))
@example(b"\xff")
@example(b"process " + b"9" * 5000 + b" on here")
def test_whatever_a_lock_says_its_holder_is_told_or_none(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("fuzzed")
    (folder / LOCK_FILE).write_bytes(content)
    found = lock_owner(folder)
    assert found is None or f"process {found.pid}".encode() in content
    with acquire_lock(folder, "first"):
        (folder / LOCK_FILE).write_bytes(content)
        with pytest.raises(ConfigError) as refused:
            acquire_lock(folder, "first")
    assert_readable(refused.value, "first: is being run by")
