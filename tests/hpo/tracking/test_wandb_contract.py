"""The real SDK against a stand-in W&B server on loopback: what arrives, and what becomes of it when the server fails.

With a key in PIX2PIX_WANDB_TEST_KEY one test goes to the real server, too.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb
import wandb_server
from curves import controller, report, run_all, story
from drivers import GUARD_SECONDS, HPO, driver, num_reports
from loopback import listening
from PIL import Image
from wandb_files import TAGS, fragments

from hpo.cli.commands import main
from hpo.policy import leaderboard
from hpo.policy.search_config import SearchConfig
from hpo.policy.trial_attributes import DECISION
from hpo.store import file_names
from hpo.store.record import Record
from hpo.tracking import wandb_login, wandb_runs, wandb_tracker
from hpo.tracking.wandb_tracker import Tracker, sync
from model.denoise import MANIFEST, DenoiseError
from model.export import ONNX_FILE, STRIP_FILE, WEIGHTS_FILE
from model.training_files import strip_name

SEARCH = SearchConfig(
    trials=3, epochs=4, reduction_factor=3, objectives=("ssim",), seed=9, set={"width": 4}, wandb="online"
)


@pytest.fixture(autouse=True)
def sdk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B's state of a process, begun anew for each server."""
    wandb.teardown()
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    yield
    wandb.teardown()


class Server:
    """A stand-in that can go away and come back."""

    def __init__(self) -> None:
        self.state = wandb_server.StandIn()
        self._stack = ExitStack()

    def come(self) -> None:
        self._stack.enter_context(wandb_server.serving(self.state))

    def go(self) -> None:
        self._stack.close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server()
    server.come()
    monkeypatch.setenv("WANDB_BASE_URL", server.state.url)
    monkeypatch.setenv("WANDB_API_KEY", wandb_server.KEY)
    yield server
    server.go()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_runs, "INIT_SECONDS", 1.5)
    monkeypatch.setattr(wandb_tracker, "_FINISH_SECONDS", 3.0)


@pytest.fixture
def record(runs: Path) -> Record:
    return Record.create(runs, "first", SEARCH)


@pytest.fixture
def export_folder(record: Record) -> Path:
    """As the search would have it, but for what is in the two files of weights."""
    folder = record.folder / file_names.EXPORT
    folder.mkdir()
    (folder / ONNX_FILE).write_bytes(os.urandom(10_000))
    (folder / WEIGHTS_FILE).write_bytes(os.urandom(10_000))
    Image.new("L", (24, 8)).save(folder / STRIP_FILE)
    row = {"l1": 0.05, "ssim": 0.87, "psnr_db": 26.0}
    test = {"images": 20, "noisy": row, "denoised": row | {"ssim": 0.9}, "ground_truth": row | {"psnr_db": "inf"}}
    manifest = {
        "origin": {"search": "first", "trial": 0, "trials": 3, "final_epochs": 0},
        "model": {"file": ONNX_FILE, "channels": 1, "image_size": 32, "padding": 2},
        "config": {"width": 4},
        "data": {"noise": "gaussian:30"},
        "metrics": {"validation": test, "test": test},
        "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def track(record: Record, *, exported: bool = False) -> list[str]:
    """A whole search under a tracker; gives what it said."""
    said: list[str] = []
    tracker = Tracker(record, said.append)
    run_all(controller(record, tracker))
    if exported:
        tracker.export()
    tracker.close()
    return said


def assert_each_epoch_once(state: wandb_server.StandIn, record: Record) -> None:
    """On the server, with the ends of the trials."""
    trials = record.trials()
    assert [run.id for run in state.of("trial")] == [f"{record.id}-{trial.number:05}" for trial in trials]
    for run, trial in zip(state.of("trial"), trials, strict=True):
        told = leaderboard.reports_of(trial)
        assert [row["epoch"] for row in run.rows] == [report.epoch for report in told]
        assert [row["train/gen_total"] for row in run.rows] == [report.gen_total for report in told]
        assert run.told["tags"] == [TAGS[trial.user_attrs[DECISION]["reason"]]]
        assert run.exit_code == (run.told["tags"] in (["diverged"], ["collapsed"]))


def assert_untouched(record: Record, runs: Path) -> None:
    """Its record is that of a search without W&B."""
    untracked = Record.create(runs, "untracked", record.search)
    run_all(controller(untracked))
    assert story(record.trials()) == story(untracked.trials())


def test_what_a_search_logs_arrives(server, record, export_folder, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "denoisers")
    for number in range(2):
        record.trial_folder(number).mkdir(parents=True)
        for epoch in range(1, record.search.epochs + 1):
            Image.new("L", (8, 8), 100 + number).save(record.trial_folder(number) / strip_name(epoch))
    wandb_login.log_in()
    said = track(record, exported=True)
    state = server.state
    assert_each_epoch_once(state, record)
    for run, trial in zip(state.of("trial"), record.trials(), strict=True):
        assert (run.told["groupName"], run.told["project"]) == ("first", "denoisers")
        assert run.config.items() >= {**trial.params, "width": 4, "search": "first", "trial": trial.number}.items()
        best = leaderboard.best_report(trial, "ssim")
        told = [run.summary[f"best/{name}"] for name in ("ssim", "psnr", "epoch")]
        assert told == pytest.approx([best.ssim, best.psnr_db, best.epoch])
        strips = {path.read_bytes() for path in record.trial_folder(trial.number).glob("epoch-*.png")}
        pictures = [content for name, content in run.files.items() if name.startswith("media/images/val/strip")]
        assert set(pictures) == strips
        assert ("val/strip" in run.rows[0]) == bool(strips)

    (exported,) = state.of("export")
    assert exported.told["groupName"] == "first"
    assert exported.exit_code == 0
    tables = {
        name.split("/")[-1].split("_")[0]: json.loads(file) for name, file in exported.files.items() if "table" in name
    }
    board = leaderboard.leaderboard(record.trials(), "ssim")
    numbers = tables["leaderboard"]["columns"].index("number")
    assert [row[numbers] for row in tables["leaderboard"]["data"]] == [row["number"] for row in board]
    assert [row[0] for row in tables["samples"]["data"]][:1] == ["exported, test"]
    assert len(tables["samples"]["data"]) == 3  # and two trials with pictures
    manifest = json.loads((export_folder / "manifest.json").read_text())
    assert exported.summary["test/denoised/ssim"] == pytest.approx(manifest["metrics"]["test"]["denoised"]["ssim"])

    (model,) = state.models()
    assert model.committed
    assert {alias["alias"] for alias in model.told["aliases"]} >= {"best", "candidate"}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in model.files.items()}
    assert digests.pop("manifest.json") == hashlib.sha256((export_folder / "manifest.json").read_bytes()).hexdigest()
    assert digests == manifest["files"]

    (view,) = state.views
    assert said == [f"W&B: {state.url}/somebody/denoisers?nw={view['name'].removeprefix('nw-').removesuffix('-v')}"]
    kinds = {
        panel["viewType"]
        for section in json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]
        for panel in section["panels"]
    }
    assert kinds == {
        "Parallel Coordinates Plot",
        "Parameter Importance",
        "Scatter Plot",
        "Run History Line Plot",
        "Media Browser",
    }
    assert "lr_g" in view["spec"]

    # The key is nowhere on disk, and a process that is started now does not inherit it.
    files = [path for path in record.folder.rglob("*") if path.is_file()]
    assert [path for path in files if wandb_server.KEY.encode() in path.read_bytes()] == []
    assert wandb_server.KEY not in os.environ.values()

    asked = state.asked.copy()
    assert sync(record, exported=True) == (0, None)  # there is nothing left to send
    assert state.asked == asked


def test_two_searches_of_one_name_do_not_meet(server, record, tmp_path):
    wandb_login.log_in()
    other = Record.create(tmp_path / "others", "first", SEARCH)
    for each in (record, other):
        track(each)
    assert len(server.state.of("trial")) == 6


def refuse(server: Server) -> None:
    server.go()


def overload(server: Server) -> None:
    server.state.status = 429


def hang(server: Server) -> None:
    server.state.hang_seconds = 60


def die(server: Server) -> None:
    server.state.rows_until_death = 6  # in the middle of a run; the one before has arrived whole


def die_before_an_answer(server: Server) -> None:
    server.state.rows_until_death = 4  # it has all rows of the first run, and nobody was told


def revoke(server: Server) -> None:
    server.state.key = "another"


def recover(server: Server) -> None:
    state = server.state
    state.status, state.hang_seconds, state.rows_until_death, state.key = None, 0.0, None, wandb_server.KEY
    server.go()
    server.come()
    os.environ["WANDB_API_KEY"] = wandb_server.KEY  # that log_in had put away


@pytest.mark.parametrize(
    "fail",
    [
        refuse,
        hang,
        die_before_an_answer,
        *(pytest.param(fail, marks=pytest.mark.slow) for fail in (overload, die, revoke)),
    ],
)
def test_a_server_that_fails_changes_nothing_and_gets_what_it_missed_later(  # noqa: PLR0917
    fail: Callable[[Server], None], server, record, runs, impatient, caplog
):
    wandb_login.log_in()
    fail(server)
    track(record)
    assert_untouched(record, runs)
    warnings = [r.getMessage() for r in caplog.records if r.name == "hpo.tracking.wandb_tracker"]
    assert len(warnings) == 1
    assert "hpo sync first" in warnings[0]
    assert {path.name.rpartition("-")[2] for path in fragments(record)} | {
        path.stem.rpartition("-")[2] for path in (record.folder / "wandb").glob("*.sent")
    } == {"00000", "00001", "00002"}  # what was not sent is in W&B's offline files

    wandb.teardown()
    recover(server)
    wandb_login.log_in()
    sent, _ = sync(record, exported=False)
    assert sent > 0
    assert_each_epoch_once(server.state, record)
    # `wandb sync` would leave them out.
    assert [path for path in fragments(record) if not list(path.glob("run-*.wandb.synced"))] == []


def test_rows_that_wandb_gives_up_on_without_a_word_are_missed_and_sent_later(server, record, caplog):
    server.state.stream_status = 403
    wandb_login.log_in()
    tracker = Tracker(record)
    run_all(controller(record, tracker))
    while tracker._runs.unconfirmed < 3:  # each was logged when it ended, and not at the end once more
        time.sleep(0.01)
    tracker.close()
    assert server.state.asked["RunResumeStatus"] == 3
    (warning,) = [r.getMessage() for r in caplog.records if r.name == "hpo.tracking.wandb_tracker"]
    assert "3 runs are incomplete on the server" in warning
    server.state.stream_status = None
    assert sync(record, exported=False)[0] == 3
    assert_each_epoch_once(server.state, record)


def test_a_server_that_hangs_at_the_end_holds_the_search_up_for_a_bounded_time(server, record, monkeypatch, caplog):
    monkeypatch.setattr(wandb_tracker, "_CLOSE_SECONDS", 1.0)
    wandb_login.log_in()
    server.state.hang_seconds = 20
    track(record)  # whoever waits for the server itself waits for minutes
    assert [r.getMessage() for r in caplog.records if r.name == "hpo.tracking.wandb_tracker"] == [
        "W&B: it did not finish within 1 s. `hpo sync first` sends what is missing"
    ]


SUPPORT = Path(__file__).parents[2] / "support"
DRIVER = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from curves import controller, train
from hpo.tracking import wandb_login, wandb_tracker
from hpo.store.record import Record
record = Record(Path(sys.argv[1]), "first")
wandb_login.log_in()
driver = controller(record, tracker := wandb_tracker.Tracker(record))
train(driver, driver.next_trial().number, [])
train(driver, driver.next_trial().number, [], epochs=2)
input()
"""


@pytest.mark.parametrize("moment", ["one run has arrived", pytest.param("at once", marks=pytest.mark.slow)])
def test_a_driver_that_is_killed_and_continued_loses_no_epoch_and_sends_none_twice(server, record, runs, moment):
    command = [sys.executable, "-c", DRIVER, str(runs), str(SUPPORT)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as driver:
        while True:
            with server.state.lock:
                if len(server.state.runs) == (2 if moment == "one run has arrived" else 1):
                    break
            assert driver.poll() is None
            time.sleep(0.01)
        driver.send_signal(signal.SIGKILL)
    again = Record(runs, "first")
    wandb_login.log_in()
    track(again)
    assert_each_epoch_once(server.state, again)


def test_a_search_that_was_logged_offline_is_sent_by_one_command_once(server, record, export_folder, runs, capsys):
    record.update_config({"wandb": "offline"})
    track(record, exported=True)
    assert server.state.asked.total() == 0
    server.state.rows_until_death = 6
    command = ["sync", "first", "--runs", str(runs)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wandb_runs, "INIT_SECONDS", 1.5)
        patch.setattr(wandb_tracker, "_SYNC_SECONDS", 3.0)
        assert main(command) == 4
    assert "W&B took 1 runs" in capsys.readouterr().err

    recover(server)
    assert main(command) == 0
    assert "Sent" in capsys.readouterr().out
    assert_each_epoch_once(server.state, record)
    assert len(server.state.models()) == len(server.state.of("export")) == 1
    upserts = server.state.asked["UpsertBucket"]
    assert main(command) == 0
    assert "W&B has all of it already" in capsys.readouterr().out
    assert server.state.asked["UpsertBucket"] == upserts


# The last one is well-formed, and no key of the server's.
@pytest.mark.parametrize("key", [None, "x" * 12, "wrong" * 8])
def test_without_a_key_that_holds_nothing_is_started(key, server, runs, record, monkeypatch, capsys):  # noqa: PLR0917
    monkeypatch.delenv("WANDB_API_KEY")
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    for command in (["search", "new", "--wandb", "online"], ["sync", "first"]):
        assert main([*command, "--runs", str(runs)]) == 2
        told = capsys.readouterr().err
        assert "key" in told
        assert key is None or key not in told
        if key is None:
            assert "wandb login" in told
            assert "--wandb offline" in told
    assert not Record.exists(runs, "new")


def test_the_key_goes_to_the_server_that_was_named_and_to_no_other(server):
    """Not even where that one leads to."""
    asked = []

    class Other(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append((self.path, self.headers["Authorization"]))
            self.send_response(302)
            self.send_header("Location", f"{address}/other")
            self.end_headers()

        do_GET = do_POST  # noqa: N815

    with listening(Other, None) as port:
        address = f"http://127.0.0.1:{port}"
        assert not wandb_login._is_refused(address, wandb_server.KEY)  # it has not said so
    assert [path for path, _ in asked] == ["/graphql"]
    assert asked[0][1].startswith("Basic ")


def test_only_pictures_of_formats_that_are_trusted_are_opened_for_wandb(record, export_folder, monkeypatch):
    """W&B opens whatever Pillow can, for which PostScript is run. And nothing that the export does not name is sent."""
    made = []
    monkeypatch.setattr(wandb, "Image", lambda *given, **_: made.append(given))
    runs = wandb_runs.WandbRuns(record, online=False, finish_seconds=1)
    opened = wandb_runs._OpenRun(SimpleNamespace(log=lambda _: None), 0)
    folder = record.trial_folder(0)
    folder.mkdir(parents=True)
    Image.new("RGB", (24, 8)).save(folder / strip_name(1), "EPS")
    Image.new("RGB", (24, 8)).save(folder / strip_name(2), "PNG")
    runs._log_epochs(opened, [report(1, 0.5), report(2, 0.5)], folder, ended=True)
    assert made == [(str(folder / strip_name(2)),)]
    (export_folder / "id_rsa").symlink_to(record.folder / "search.json")
    with pytest.raises(DenoiseError, match="id_rsa: is not in the manifest"):
        runs.log_export()


@pytest.mark.slow
@pytest.mark.timeout(2 * GUARD_SECONDS)
def test_a_whole_search_online_with_the_key_nowhere_but_in_the_driver(server, tmp_path):
    options = [
        "--trials",
        "3",
        "--epochs",
        "2",
        "--images-per-epoch",
        "256",
        "--final-epochs",
        "2",
        "--wandb",
        "online",
    ]
    options += ["--set", "width=4", "--set", "batch_size=16"]
    given = [f"{name}={os.environ[name]}" for name in ("WANDB_BASE_URL", "WANDB_API_KEY", "HOME")]
    with driver(tmp_path, options, ("env", *given, HPO, "search", "first")) as running:
        running.wait_for(lambda: num_reports(tmp_path) > 0)
        others = [process for process in running.processes() if process.pid != running.process.pid]
        assert len(others) > 5
        assert [process.name() for process in others if wandb_server.KEY in process.environ().values()] == []
        _, err = running.process.communicate(timeout=GUARD_SECONDS)
        assert running.process.returncode == 0, err
        assert running.left_after(seconds=10) == []
    record = Record(tmp_path / "runs", "first")
    assert_each_epoch_once(server.state, record)
    (exported,) = server.state.of("export")
    assert [row.get("epoch") for row in exported.rows] == [1, 2, None]
    (model,) = server.state.models()
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in model.files.items()}
    manifest = (record.folder / file_names.EXPORT / MANIFEST).read_bytes()
    assert digests == {**json.loads(manifest)["files"], MANIFEST: hashlib.sha256(manifest).hexdigest()}
    assert server.state.url in err
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or wandb_server.KEY.encode() not in path.read_bytes(), path


@pytest.mark.skipif("PIX2PIX_WANDB_TEST_KEY" not in os.environ, reason="no W&B key in PIX2PIX_WANDB_TEST_KEY")
def test_the_real_server_takes_a_search(record, monkeypatch):
    """Into the project pix2pix-search-test of the key's owner, where its runs stay."""
    monkeypatch.setenv("WANDB_API_KEY", os.environ["PIX2PIX_WANDB_TEST_KEY"])
    monkeypatch.setenv("WANDB_PROJECT", "pix2pix-search-test")
    wandb_login.log_in()
    (line,) = track(record)
    assert "pix2pix-search-test" in line
    assert len(list((record.folder / "wandb").glob("*.sent"))) == 3
