"""What a user's command gets once a search has ended by itself, and what its failure does: nothing."""

from __future__ import annotations

import json
import signal
import time

import psutil
import pytest

import hpo.run.search
from hpo.run import on_finish
from hpo.run.search import run_search
from hpo.store import search_results
from hpo.store.record import Record
from model.common.errors import MachineError


@pytest.fixture
def asked(done, runs, tmp_path, monkeypatch):
    """Continue the finished trials, as if the export were still to be made; gives exit code and what it got."""
    monkeypatch.setattr(
        hpo.run.search, "load_inputs", lambda *_: (None, type("Images", (), {"digest": "0", "messages": ()}))
    )
    metrics = {"test": {"denoised": {"ssim": 0.9}}}
    monkeypatch.setattr(search_results, "export_document", lambda _: {"folder": "there", "metrics": metrics})

    def search(ends, command: str = f"cat > {tmp_path / 'got.json'}"):
        def run(*_, **__):
            if isinstance(ends, BaseException):
                raise ends
            if isinstance(ends, signal.Signals):
                signal.raise_signal(ends)
            return ends

        monkeypatch.setattr(hpo.run.search.SearchRun, "search", run)
        try:
            code = run_search("first", runs, {"on_finish": command}, quiet=True)
        except MachineError:
            code = 4
        got = tmp_path / "got.json"
        return code, json.loads(got.read_text()) if got.exists() else None

    return search


def test_the_command_gets_what_show_tells_and_the_exports_figures(asked, done, runs):
    code, got = asked(0)
    shown = json.loads(json.dumps(search_results.document(Record(runs, "first"))))
    assert code == 0
    assert {name: got[name] for name in shown} == shown
    assert (got["exit_code"], got["reason"]) == (0, "exported")
    assert got["export"]["metrics"]["test"]["denoised"] == {"ssim": 0.9}


@pytest.mark.parametrize(
    ("ends", "code", "reason"),
    [(3, 3, "No trial produced a valid result"), (MachineError("disk full at /runs"), 4, "disk full at /runs")],
)
def test_it_also_hears_of_a_search_that_ended_badly(asked, ends, code, reason):
    ended, got = asked(ends)
    assert (ended, got["exit_code"], got["reason"], got["export"]) == (code, code, reason, None)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_hears_nothing_of_one_that_was_interrupted(asked, number, code):
    former = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        assert asked(number) == (code, None)
    finally:
        for each, handler in former.items():
            signal.signal(each, handler)


def test_its_failure_is_told_and_changes_nothing(asked, capfd):
    assert asked(0, "echo to the log; exit 7")[0] == 0
    out, err = capfd.readouterr()
    assert (out, err) == (
        "",
        "to the log\n--on-finish: the command ended with exit code 7; the search is not affected\n",
    )


def test_it_is_changed_and_taken_back_when_the_search_is_continued(asked, runs):
    assert asked(0)[1] is not None
    assert Record(runs, "first").search.on_finish.startswith("cat")
    code, _ = asked(0, "")
    assert (code, Record(runs, "first").search.on_finish) == (0, "")


def test_names_and_errors_are_data_not_shell(tmp_path, capfd):
    hostile = {"reason": f"'; touch {tmp_path}/broken; `touch {tmp_path}/broken` $(touch {tmp_path}/broken)"}
    on_finish.run(f"cat > {tmp_path}/got.json", hostile)
    assert json.loads((tmp_path / "got.json").read_text()) == hostile
    assert not (tmp_path / "broken").exists()


def test_one_that_hangs_is_ended_with_all_that_it_started(tmp_path, capfd):
    on_finish.run("sleep 600 & echo $! > " + str(tmp_path / "pid") + "; wait", {}, timeout=0.5)
    assert "was ended after 0.5 s" in capfd.readouterr().err
    started = int((tmp_path / "pid").read_text())
    end = time.monotonic() + 10
    while psutil.pid_exists(started) and psutil.Process(started).status() != "zombie":
        assert time.monotonic() < end
        time.sleep(0.05)


def test_one_that_reads_nothing_is_no_failure(capfd):
    on_finish.run("exec 0<&-; true", {"long": "x" * 1_000_000})
    assert capfd.readouterr().err == ""
