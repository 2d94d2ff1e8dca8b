"""`hpo dashboard`: what its pages show in a browser, and that nobody changes anything through them."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from chromium import chromium, needs_chromium
from curves import controller, train
from PIL import Image

from hpo.cli.commands import main
from hpo.store.record import Record
from hpo.views import dashboard
from hpo.views.dashboard import open_server


def strip(record: Record, number: int, epoch: int) -> Path:
    path = record.trial_folder(number) / f"epoch-{epoch:04}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (100, 200), 10 * number + epoch).save(path)
    return path


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[None]:
    try:
        yield
    finally:
        process.kill()


@contextmanager
def served(runs: Path) -> Iterator[int]:
    server, address = open_server(Record(runs, "first", read_only=True), 0)
    with server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            assert address.startswith(f"http://127.0.0.1:{server.server_port}/")
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def ask(port: int, path: str, method: str = "GET", host: str | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    return answer.status, answer.read()


def trials_on(port: int) -> dict[int, dict]:
    return {trial["number"]: trial for trial in json.loads(ask(port, "/api/studies/0")[1])["trials"]}


def test_states_values_and_strips_are_the_records(done, runs):
    path = strip(done, 3, 1)
    with served(runs) as port:
        shown = trials_on(port)
        for trial in done.trials():
            there = shown[trial.number]
            assert there["state"].upper() == trial.state.name
            assert there["values"] == trial.values
            assert {
                value["step"]: value["value"] for value in there["intermediate_values"]
            } == trial.intermediate_values
        (artifact,) = shown[3]["artifacts"]
        assert ask(port, f"/artifacts/0/3/{artifact['artifact_id']}") == (200, path.read_bytes())
        assert ask(port, "/artifacts/0/3/00004-0001")[0] == 404


def test_it_follows_a_search_that_runs(record, runs, monkeypatch):
    monkeypatch.setattr(dashboard, "_REFRESH_SECONDS", 0)
    running = controller(record)
    first = running.next_trial().number
    reports: list = []
    train(running, first, reports, epochs=1)
    with served(runs) as port:
        assert trials_on(port)[first]["state"] == "Running"
        train(running, first, reports)
        second = running.next_trial().number
        strip(record, first, 1)
        end = time.monotonic() + 60  # the pages' own memory lasts two seconds
        while second not in (shown := trials_on(port)):
            assert time.monotonic() < end
            time.sleep(0.2)
        now = record.trial(first)
        assert shown[first]["state"].upper() == now.state.name
        assert {v["step"]: v["value"] for v in shown[first]["intermediate_values"]} == now.intermediate_values
        assert len(shown[first]["artifacts"]) == 1
        assert shown[second]["state"] == "Running"


@pytest.mark.parametrize(
    ("method", "path", "host"),
    [
        ("DELETE", "/api/studies/0", None),
        ("PUT", "/api/studies/0/note", None),
        ("POST", "/api/trials/0/tell", None),
        ("POST", "/api/artifacts/0/0", None),
        ("GET", "/api/studies/0", "rebound.example"),
    ],
)
def test_nothing_is_changed_from_outside_nor_read_through_another_name(done, runs, method, path, host):
    before = {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()}
    with served(runs) as port:
        assert ask(port, path, method, host)[0] == 403
        assert len(trials_on(port)) == 8
    assert {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()} == before


def test_a_port_that_is_taken_is_told(done, runs, capsys):
    with served(runs) as port:
        assert main(["dashboard", "first", "--runs", str(runs), "--port", str(port)]) == 2
    assert f"port={port}: cannot listen on it (" in capsys.readouterr().err


@needs_chromium
def test_a_browser_shows_states_and_values_and_ctrl_c_leaves_nothing(done, runs, tmp_path):
    winner = max((t for t in done.trials() if t.state.name == "COMPLETE"), key=lambda trial: trial.value)
    strip(done, winner.number, 1)
    command = [sys.executable, "-m", "hpo.cli", "dashboard", "first", "--runs", str(runs), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process, ended(process):
        address = re.match(r"http://127\.0\.0\.1:\d+/\S+", process.stderr.readline())[0]
        (listening,) = (s for s in psutil.Process(process.pid).net_connections("inet") if s.status == "LISTEN")
        assert listening.laddr.ip == "127.0.0.1"
        with chromium() as page:
            page.call("Page.navigate", url=f"{address}/trials?numbers={winner.number}")
            page.wait_for(f"document.body?.innerText.includes('Trial {winner.number} (trial_id={winner.number})')")
            picture = f'[src*="/artifacts/0/{winner.number}/{winner.number:05}-0001"]'
            page.wait_for(f"document.querySelector('{picture}') !== null")
            text = page.run("document.body.innerText")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
        assert "Traceback" not in process.stderr.read()
    assert str(winner.value) in text
    states = [trial.state.name for trial in done.trials()]
    assert text.count("Pruned") == states.count("PRUNED")
    assert text.count("Complete") >= states.count("COMPLETE")
