"""A results folder that came from somebody else: whatever is in the place of its files, it is data, and no code of it
runs; names and errors in it steer no terminal."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from curves import append_report, report
from optuna.distributions import CategoricalDistribution
from PIL import Image

import hpo.run.search
from hpo.cli.commands import main
from hpo.policy.search_config import SearchConfig
from hpo.policy.suggestions import Suggestion
from hpo.store.object_storage import Storage
from hpo.store.record import Record
from hpo.store.search_results import winner
from hpo.tracking import wandb_runs
from hpo.views.dashboard import open_server
from hpo.views.terminal import Terminal
from hpo.views.watch import watch
from model.common.errors import ConfigError, MachineError
from model.config import TrainConfig
from model.data.data_config import DataConfig
from model.data.pixel_format import EIGHT_BITS

LOAD = DataConfig.load


class Trap:
    """Runs code when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.marker),)


def as_text(marker: Path) -> bytes:
    return pickle.dumps(Trap(marker), 0)  # ASCII alone


def as_torch_writes_it(marker: Path) -> bytes:
    file = io.BytesIO()
    torch.save({"state": Trap(marker)}, file)
    return file.getvalue()


@pytest.fixture(autouse=True)
def without_images_and_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("Ray was started")

    images = SimpleNamespace(digest="0", messages=(), pixel_format=EIGHT_BITS)
    monkeypatch.setattr(hpo.run.search, "load_inputs", lambda *_: (None, images))
    monkeypatch.setattr("ray.init", refuse)
    monkeypatch.setattr("hpo.store.study_replication.READ_TIMEOUT_SECONDS", 1.0)
    monkeypatch.setattr("hpo.store.study_replication.TIMEOUT_SECONDS", 1.0)
    monkeypatch.setattr(DataConfig, "load", lambda *_: SimpleNamespace(digest="0", shape=(1, 32, 32), validation=()))


@pytest.fixture
def folder(done: Record) -> Path:
    """Of a search that has a final training and everything else that is read."""
    done.update_config({"final_epochs": 2})
    for trial in done.trials():
        done.trial_folder(trial.number).mkdir(parents=True)
    return done.folder


class EndedError(Exception):
    """Watched long enough."""


def watched(runs: Path, storage: Storage | None) -> None:
    def wait(_: float) -> None:
        raise EndedError

    with contextlib.suppress(EndedError):
        watch(runs, "first", Terminal(stderr=True), wait, storage)


def served(record: Record) -> None:
    server, _ = open_server(record, 0)
    server.server_close()


def verbs(runs: Path, storage: Path | None = None) -> dict[str, Callable[[], object]]:
    where = ["--runs", str(runs), *(["--storage", str(storage)] if storage else [])]
    made = {verb: lambda verb=verb: main([*verb.split(), "first", *where]) for verb in NAMED}
    return {
        **made,
        "list": lambda: main(["list", *where]),
        "watch": lambda: watched(runs, Storage(str(storage), timeout_seconds=1) if storage else None),
        "dashboard": lambda: served(Record(runs, "first", read_only=True)),
        "evaluate": lambda: main(["evaluate", str(runs / "first" / "export")]),
        "denoise": lambda: main(["denoise", str(runs / "first/export"), str(runs / "a.png"), "--to", str(runs / "to")]),
        "pictures for W&B": lambda: wandb_runs.picture_path(runs / "first/trials/00003/epoch-0001.png"),
    }


NAMED = ("show", "show --decisions", "report", "stop", "export", "search", "rm --yes")
READ_BY = {
    "search.json": (*NAMED, "list", "watch", "dashboard"),
    "study.db": (*NAMED, "list", "watch", "dashboard"),
    "study.db-journal": ("watch", "show", "search"),
    "storage.json": (*NAMED, "list", "dashboard"),
    "status.json": ("watch",),
    "lock": ("watch", "stop", "search", "rm --yes"),
    "trials/00003/epoch-0001.png": ("report", "pictures for W&B"),
    "trials/BEST/best.safetensors": ("export",),
    "final/last.safetensors": ("report",),
    "export/manifest.json": ("list", "show", "report", "watch", "search", "export", "evaluate", "denoise"),
    "export/generator.onnx": ("evaluate", "denoise"),
}


@contextlib.contextmanager
def not_run(marker: Path) -> Iterator[None]:
    """Neither the code, nor anything into an error that nobody foresaw: those that are told have these two types."""
    with contextlib.suppress(ConfigError, MachineError):
        yield
    assert not marker.exists()


@pytest.mark.parametrize("write", [as_text, as_torch_writes_it])
@pytest.mark.parametrize("name", READ_BY)
def test_code_in_the_place_of_a_file_never_runs_and_what_is_wrong_is_told(name, write, folder, tmp_path, capsys):
    runs = folder.parent
    marker, path = tmp_path / "marker", folder / name.replace("BEST", f"{winner(Record(runs, 'first')):05}")
    Image.new("L", (8, 8)).save(runs / "a.png")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(write(marker))
    if name.endswith("onnx"):
        model = {"file": "generator.onnx", "channels": 1, "image_size": 32, "padding": 2}
        told = {"model": model, "files": {"generator.onnx": "0"}, "data": {}, "origin": {}, "metrics": {}}
        (path.parent / "manifest.json").write_text(json.dumps(told))
    for verb in READ_BY[name]:
        with not_run(marker):
            code = verbs(runs)[verb]()
            err = capsys.readouterr().err
            assert code in (0, 2, 4, None), (verb, err)
            assert not code or str(path) in err or str(path.parent) in err or "Ray was started" in err, (verb, err)
    if write is as_text:
        pickle.loads(write(marker))
        assert marker.exists()  # the trap works


STORED = {
    "search.json": ("list", "show", "report", "stop", "search"),
    "study/000001-00000000.db": ("list", "show", "report", "search"),
    "study/evil.db": ("show",),
    "lease/000001-00000000.json": ("stop", "watch", "search"),
    "lease/evil.json": ("stop", "watch"),
    "status.json": ("watch",),
    "export/manifest.json": ("list", "report"),
}


@pytest.mark.parametrize("write", [as_text, as_torch_writes_it])
@pytest.mark.parametrize("name", STORED)
def test_the_same_in_a_storage(name, write, folder, tmp_path, capsys):
    marker, there = tmp_path / "marker", tmp_path / "storage"
    claim = {"name": "000001-00000000", "pid": 1, "host": "elsewhere", "counter": 1, "released": True}
    for part in ("study", "lease", "export"):
        (there / "first" / part).mkdir(parents=True)
    (there / "first/lease/000001-00000000.json").write_text(json.dumps(claim))
    shutil.copy(folder / "study.db", there / "first/study/000001-00000000.db")
    shutil.copy(folder / "search.json", there / "first")
    (there / "first" / name).write_bytes(write(marker))
    for verb in STORED[name]:
        with not_run(marker):
            code = verbs(tmp_path / "elsewhere", there)[verb]()
            err = capsys.readouterr().err
            assert code in (0, 2, 4, 75, None), (verb, err)


def test_who_only_looks_runs_nothing_that_a_search_names(folder, runs, tmp_path, capsys):
    """A space is a file of Python, and --on-finish a command: both are run by `hpo search` alone."""
    marker = tmp_path / "marker"
    (tmp_path / "space.py").write_text(f"import os; os.mkdir({str(marker)!r})")
    about = json.loads((folder / "search.json").read_text())
    about["search"] |= {"space": str(tmp_path / "space.py"), "on_finish": f"mkdir {marker}"}
    (folder / "search.json").write_text(json.dumps(about))
    for verb in ("list", "show", "show --decisions", "report", "watch", "stop", "dashboard", "export", "rm --yes"):
        with not_run(marker):
            verbs(runs)[verb]()
    with contextlib.suppress(MachineError):  # the trap works: who goes on with somebody's search trusts them
        main(["search", "first", "--runs", str(runs)])


# --- what a terminal shows ------------------------------------------------------------------------------------------

HOSTILE = "\x1b]0;title\x07\x1b[2J\x1b]8;;http://evil/\x1b\\link\r\x9b31m\x08\x7f\u202egnp.exe"
COMMANDS = {*map(chr, range(32)), *map(chr, range(0x7F, 0xA0)), "\u202e"} - {"\n", "\t"}


def test_names_parameters_and_errors_are_no_commands_to_the_terminal(runs, capsys):
    record = Record.create(runs, "first", SearchConfig(trials=2, pruner="none"))
    params = {HOSTILE: HOSTILE}
    distributions = {HOSTILE: CategoricalDistribution([HOSTILE, "x"])}
    for number in range(2):
        record.add(Suggestion(params=params, distributions=distributions, config=TrainConfig(), by="random"))
        append_report(record, number, report(1, 0.5), HOSTILE)
        record.add_failure(number, HOSTILE)
        record.add_migration(number, HOSTILE)
    record.fail(0, HOSTILE)
    about = json.loads((record.folder / "search.json").read_text())
    (record.folder / "search.json").write_text(json.dumps(about | {"created": HOSTILE}))
    (record.folder / "lock").write_text(f"process 1 on \x1b[2J{'x' * 9}")
    for verb in ("list", "show", "show --decisions", "watch", "stop"):
        verbs(runs)[verb]()
        shown = "".join(capsys.readouterr())
        assert not COMMANDS & set(shown), verb
        if verb.startswith("show"):
            assert "␛]0;title␛[2J" in "".join(shown.split())  # it is told all the same; rich leaves BEL out


def test_nor_are_the_names_of_files(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(DataConfig, "load", LOAD)
    for name in ("a", "b", "\x1b[2Jevil\r"):
        (tmp_path / f"{name}.png").write_bytes(b"")
    assert main(["train", "--to", str(tmp_path / "to"), "--data", str(tmp_path), "--crop", "16"]) == 2
    err = capsys.readouterr().err
    assert "[2Jevil" in err
    assert not COMMANDS & set(err)


def test_a_table_in_colours_has_commands_of_ours_alone():
    console = Terminal(file=io.StringIO(), width=80, force_terminal=True)
    console.print(f"a {HOSTILE} b", style="red", highlight=False)
    shown = console.file.getvalue()
    assert shown.startswith("\x1b[31ma ␛]0;title")
    assert shown.count("\x1b") == 2  # red, and no longer


def test_a_folder_that_is_no_searchs_hides_none(done, runs, capsys):
    (runs / "\x1b[2J").mkdir()
    (runs / "my results").mkdir()
    for name in ("\x1b[2J", "my results"):
        (runs / name / "search.json").write_text("{}")
    assert main(["list", "--runs", str(runs)]) == 0
    assert capsys.readouterr().out.split()[0] == "first"
