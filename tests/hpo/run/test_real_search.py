"""A real search on Fashion-MNIST, and everything that is done with it."""

from __future__ import annotations

import ipaddress
import json
import os
import platform
import shutil
import signal
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import numpy as np
import optuna
import pytest
import torch
from chromium import chromium, needs_chromium
from curves import essence
from drivers import GUARD_SECONDS, driver, finished, leaked, num_reports
from PIL import Image
from tensorboard_files import assert_all_there as tensorboard_has_all
from wandb_files import assert_all_there, everything_in, export_fragment, fragments
from wandb_files import read as read_wandb

from hpo.cli.commands import main
from hpo.policy import leaderboard, report_decision, trial_attributes
from hpo.store import file_names, search_results
from hpo.store.record import Record
from hpo.views.html_report import REPORT
from model.checkpoint import load_checkpoint
from model.data import fashion_mnist
from model.data.data_config import DataConfig
from model.data.device_images import DeviceImages
from model.data.image_sets import Images
from model.denoise import Denoiser
from model.trainer import SEARCH_VALIDATION_IMAGES, load_generator, validate
from model.training_files import BEST, LAST
from model.training_report import EvalReport

import psutil  # isort: skip - Ray brings its own along, found once Ray is imported

SEARCH = ["--trials", "5", "--epochs", "3", "--images-per-epoch", "512", "--final-epochs", "2", "--wandb", "offline"]
SEARCH += ["--tensorboard", "--set", "width=4", "--set", "dropout=0", "--set", "batch_size=16"]
ONE_SLOT = [*SEARCH, "--max-concurrent", "1"]
pytestmark = pytest.mark.timeout(3 * GUARD_SECONDS)


# --- running it -----------------------------------------------------------------------------------------------------


def stopped(folder: Path, options: list[str], sig: signal.Signals) -> int:
    """Send the signal once the study has a report that it had not before; gives the exit code."""
    before = num_reports(folder)
    with driver(folder, options) as running:
        running.wait_for(lambda: num_reports(folder) > before)
        running.process.send_signal(sig)
        running.process.communicate(timeout=GUARD_SECONDS)
        code = running.process.returncode
        assert running.left_after(seconds=10) == []
    return code


@dataclass(frozen=True)
class Searched:
    folder: Path
    runs: Path
    listening: set[str]  # addresses that a process of the search listened on
    output: str  # on stdout
    secrets: dict[str, str]  # what its environment had of them, by name
    leaks: set[str]  # what of them was found in files while it ran, or where no other process needs them
    modes: set[int]  # of the folder that Ray and Tune have, and all that lies in it
    answer: str  # of Ray's head to somebody without the token

    @property
    def record(self) -> Record:
        return Record(self.runs, "first")

    @property
    def export(self) -> Path:
        return self.record.folder / file_names.EXPORT


SECRETS = ("WANDB_API_KEY", "PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "SOME_SECRET")
HANDED_ON = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "SOME_SECRET")  # trials read images and storage


def asked_without_token(port: int) -> str:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetAllNodeInfo")(b"", timeout=30)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Searched:
    """Left alone, with secrets in its environment. What becomes of one that is killed: test_kill.py."""
    folder = tmp_path_factory.mktemp("searched")
    secrets = {name: f"canary{uuid.uuid4().hex}" for name in SECRETS}
    home, temporary = folder / "home", folder / "tmp"
    (home / ".cache").mkdir(parents=True)
    temporary.mkdir()
    (home / ".cache" / "pix2pix-search").symlink_to(
        fashion_mnist._cache().parent
    )  # the images, where they are not Debian's
    places = {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "TMPDIR": str(temporary)}
    options = [*ONE_SLOT, "--on-finish", 'test -n "$SOME_SECRET"']
    with driver(folder, options, added={**secrets, **places}) as running:
        running.wait_for(lambda: num_reports(folder) > 0)
        processes = running.processes()
        sockets = [s for process in processes for s in process.net_connections("inet")]
        (ray_folder,) = map(Path, running.ray_folders())
        (token,) = {process.environ()["RAY_AUTH_TOKEN"] for process in processes if process.name() == "raylet"}
        secrets["RAY_AUTH_TOKEN"] = token
        (port,) = (int(path.read_text()) for path in ray_folder.glob("gcs_server_port_*"))
        answer = asked_without_token(port)
        leaks = leaked(secrets, ray_folder.parents[1], temporary, Path("/dev/shm"))
        for process in processes:
            if process.pid != running.process.pid:
                inherited = {name for name in SECRETS if secrets[name] in process.environ().values()}
                leaks |= {f"{name} in {process.name()}'s environment" for name in inherited - {*HANDED_ON}}
        modes = {ray_folder.parents[1].stat().st_mode & 0o777}
        out, errors = running.process.communicate(timeout=GUARD_SECONDS)
        assert running.process.returncode == 0, errors
        assert "core_worker" not in errors  # Ray's own log
        leaks |= {f"{name} in its output" for name, secret in secrets.items() if secret in out + errors}
    return Searched(
        folder=folder,
        runs=folder / "runs",
        listening={s.laddr.ip for s in sockets if s.status == psutil.CONN_LISTEN},
        output=out,
        secrets=secrets,
        leaks=leaks,
        modes=modes,
        answer=answer,
    )


@pytest.fixture(scope="module")
def images() -> Images:
    return DataConfig().load()


@pytest.fixture(scope="module")
def placed(images: Images) -> Iterator[DeviceImages]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as trials with one CPU have: sums of other lengths round differently
    yield DeviceImages.to_device(images, "gaussian:30", torch.device("cpu"), num_validation=SEARCH_VALIDATION_IMAGES)
    torch.set_num_threads(before)


# --- interruptions --------------------------------------------------------------------------------------------------


def test_no_process_listens_beyond_this_machine(searched):
    assert searched.listening
    addresses = [ipaddress.ip_address(address.removeprefix("::ffff:")) for address in searched.listening]
    assert all(address.is_loopback for address in addresses), addresses


def test_secrets_of_the_environment_are_in_no_byte_that_is_written(searched):
    """W&B's files are searched as they are, too, and as W&B's own reader has them: it may cut texts in two."""
    assert searched.leaks == set()
    assert leaked(searched.secrets, searched.folder) == set()
    for fragment in (*fragments(searched.record), export_fragment(searched.record)):
        read_out = everything_in(fragment)
        assert '"config"' in read_out
        assert [name for name, secret in searched.secrets.items() if secret in read_out] == []
        for private in ("SOME_SECRET", "on_finish", "--images-per-epoch"):  # the user's command, the command line
            assert private not in read_out
    assert "SOME_SECRET" not in (searched.record.folder / REPORT).read_text()
    assert searched.record.search.on_finish == 'test -n "$SOME_SECRET"'  # it stays in search.json alone


def test_rays_folder_and_ports_are_this_users_alone(searched):
    """Others on the machine reach loopback, and /tmp; Ray's own folder there is open to them."""
    assert searched.modes == {0o700}
    assert searched.answer == "UNAUTHENTICATED"
    assert not (searched.folder / "home" / ".ray").exists()  # where Ray would keep a token, for all to read


def test_results_are_readable_by_whom_the_umask_lets(searched):
    """A group that shares a folder shares the searches in it."""
    umask = os.umask(0)
    os.umask(umask)
    for path in searched.record.folder.rglob("*"):
        if not path.is_symlink() and "staging" not in path.parts:  # W&B's own
            assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path


# --- its results ----------------------------------------------------------------------------------------------------


@needs_chromium
def test_it_leaves_a_report_that_shows_what_was_measured_and_where_it_ran(searched):
    test = json.loads((searched.export / "manifest.json").read_text())["metrics"]["test"]
    with chromium() as browser:
        browser.open((searched.record.folder / REPORT).as_uri())
        assert browser.complaints == []
        cells = browser.run(
            "[...document.querySelectorAll('#measured tr')].map(r => [...r.cells].map(c => c.innerText))"
        )
        for row, name in ((cells[1], "noisy"), (cells[3], "denoised")):
            measured = test[name]
            shown = (measured["ssim"], measured["psnr_db"], measured["l1"], measured["haarpsi"])
            assert row[1:] == [f"{value:.{digits}f}" for value, digits in zip(shown, (4, 2, 4, 4), strict=True)]
        assert cells[2][1:3] == ["0.8710", "26.09"]  # the slides'
        number = search_results.winner(searched.record)
        assert str(number) in browser.run("document.querySelector('h1').innerText")
        assert "finished, 5 trials" in browser.run("document.querySelector('#status').innerText")
        assert "2 of 2 epochs" in browser.run("document.querySelector('#final-words').innerText")
        shown = browser.run("[...document.querySelectorAll('#wall b')].map(b => b.innerText)")
        assert {"Clean", "Noisy", "Trial 0", "Trial 1", f"Trial {number}", f"Trial {number}, trained again"} <= set(
            shown
        )
        assert browser.run("document.querySelector('#timeline-words').innerText").count(platform.node()) == 1


def test_optuna_sees_the_truth(searched):
    study = optuna.load_study(study_name="first", storage=f"sqlite:///{searched.runs / 'first' / 'study.db'}")
    assert len(study.trials) == 5
    for trial in study.trials:
        assert list(trial.intermediate_values) == list(range(1, trial.last_step + 1))
        assert trial.value == trial.intermediate_values[trial.last_step]
        assert (trial.state.name, trial.last_step) in {("COMPLETE", 3), ("PRUNED", 1), ("PRUNED", 2)}
    assert len({str(trial.params) for trial in study.trials}) == 5


def test_show_gives_the_leaderboard_with_the_settings_of_the_slides(searched, capsys):
    assert main(["show", "first", "--runs", str(searched.runs), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    trials = {row["number"]: row for row in shown["trials"]}
    slides = {"lr_g": 2e-4, "lr_d": 2e-4}
    assert trials[0]["params"] == {"loss": "l1", "l1_weight": 100, **slides}
    assert trials[1]["params"] == {"loss": "ssim", "ssim_weight": 100, **slides}
    assert {row["state"] for row in shown["trials"]} <= {"COMPLETE", "PRUNED"}
    assert shown["winner"] == int(max(shown["finalists"], key=lambda n: shown["finalists"][n]["value"]))
    assert main(["list", "--runs", str(searched.runs), "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)["searches"]
    assert (listed["name"], listed["trials"], listed["exported"]) == ("first", 5, True)
    assert listed["ssim"] == trials[shown["winner"]]["ssim"]


def test_a_best_checkpoint_measured_again_gives_the_recorded_figures(searched, placed):
    for trial in searched.record.trials():
        folder = searched.record.trial_folder(trial.number)
        best = leaderboard.best_report(trial, "balanced")
        generator, state = load_generator(folder / BEST, channels=1, image_size=32)
        assert len(state["reports"]) == best.epoch
        measured = validate(generator, placed)
        # to rounding: the trainer keeps its weights in another memory layout
        assert measured == pytest.approx({name: getattr(best, name) for name in measured}, rel=1e-5)
        assert not (folder / LAST).exists()  # nobody goes on from it


def test_wandb_has_each_epoch_of_each_trial_once(searched):
    assert_all_there(searched.record)


def test_wandb_has_the_final_training_and_the_export(searched):
    summary, history = read_wandb(export_fragment(searched.record))
    assert [row.get("epoch") for row in history] == [1, 2, None]
    assert {name.partition(".")[0] for name in history[-1]} >= {"leaderboard", "samples"}
    test = json.loads((searched.export / "manifest.json").read_text())["metrics"]["test"]
    assert summary["summary"]["test/denoised/ssim"] == pytest.approx(test["denoised"]["ssim"])


def test_tensorboard_has_each_epoch_of_each_trial_and_of_the_final_training_once(searched):
    _, state = load_checkpoint(searched.record.folder / file_names.FINAL / LAST)
    tensorboard_has_all(searched.record, final=[EvalReport.from_dict(report) for report in state["reports"]])


def test_the_export_is_the_winner_whole_and_measured(searched):
    denoiser = Denoiser(searched.export)  # verifies the digests
    manifest, record = denoiser.manifest, searched.record
    assert [path.name for path in searched.export.glob("*.onnx*")] == ["generator.onnx"]
    assert manifest["files"].keys() | {"manifest.json"} == {path.name for path in searched.export.iterdir()}
    assert manifest["origin"]["trial"] == search_results.winner(record)
    assert manifest["origin"]["final_training"] == search_results.final_wins(record)
    assert manifest["metrics"]["test"]["images"] == 10_000
    measured = record.metadata()[file_names.FINAL] if search_results.final_wins(record) else None
    measured = measured or record.metadata()[file_names.FINALISTS][str(search_results.winner(record))]
    validation = manifest["metrics"]["validation"]["denoised"]
    assert validation["ssim"] == pytest.approx(measured["ssim"], abs=1e-4)  # scikit-image against torch
    assert validation["psnr_db"] == pytest.approx(measured["psnr_db"], abs=1e-3)
    assert f"{manifest['metrics']['test']['denoised']['ssim']:.4f}" in searched.output


# --- what is done with it -------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[Path, tuple[int, int]]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in files}


def test_the_same_command_on_a_finished_search_changes_nothing(searched, no_ray, monkeypatch, capsys):
    monkeypatch.chdir(searched.folder)
    before = contents(searched.runs)
    assert main(["search", "first", *ONE_SLOT]) == 0
    assert "first is finished; its winner is in runs/first/export" in capsys.readouterr().err
    assert main(["search", "first", "--seed", "1"]) == 2
    assert "seed: it has 0, not 1" in capsys.readouterr().err
    assert contents(searched.runs) == before


def test_images_of_any_size_are_denoised(searched, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = [(32, 32), (47, 61), (300, 200)]
    for width, height in sizes:
        grey = np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)
        Image.fromarray(grey).save(f"{width}x{height}.png")
    names = [f"{width}x{height}.png" for width, height in sizes]
    assert main(["denoise", str(searched.export), *names, "--to", "out"]) == 0
    for name, size in zip(names, sizes, strict=True):
        with Image.open(Path("out") / name) as denoised:
            assert (denoised.size, denoised.mode) == (size, "L")
            assert not np.array_equal(np.asarray(denoised), np.asarray(Image.open(name)))


def test_any_trial_can_be_exported_with_its_checkpoint(searched, images, tmp_path, monkeypatch):
    # The figures are checked above; here few images are enough.
    few = replace(images, validation=images.validation[:50])
    monkeypatch.setattr(DataConfig, "load", lambda *_: few)
    monkeypatch.setattr(DataConfig, "load_test", lambda *_: images.validation[50:100])
    monkeypatch.setattr("hpo.store.search_results.check_images", lambda *_: None)
    to = tmp_path / "exported"
    assert main(["export", "first", "--runs", str(searched.runs), "--trial", "0", "--to", str(to), "--trainable"]) == 0
    assert Denoiser(to).manifest["origin"]["trial"] == 0
    checkpoint = searched.record.trial_folder(0) / BEST
    assert (to / "checkpoint.safetensors").read_bytes() == checkpoint.read_bytes()


@pytest.mark.slow
def test_a_search_that_was_interrupted_and_terminated_goes_on_to_the_same_end(searched, tmp_path):
    """Twice each: at any of its steps."""
    signals = [signal.SIGINT, signal.SIGTERM] * 2
    codes = [stopped(tmp_path, ONE_SLOT, sig) for sig in signals]
    assert codes == [130, 143, 130, 143]
    assert finished(tmp_path, ONE_SLOT).returncode == 0
    assert essence(Record(tmp_path / "runs", "first").trials()) == essence(searched.record.trials())


@pytest.mark.slow
def test_evaluating_the_export_repeats_the_figures_of_its_manifest(searched, capsys):
    assert main(["evaluate", str(searched.export), "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["test"] == Denoiser(searched.export).manifest["metrics"]["test"]
    assert measured["train"]["images"] == 10_000


@pytest.mark.slow
def test_a_finished_search_goes_on_with_one_more_trial(searched, tmp_path):
    shutil.copytree(searched.runs, tmp_path / "runs", symlinks=True)
    before = essence(searched.record.trials())
    more = [*ONE_SLOT]
    more[more.index("--trials") + 1] = "6"
    done = finished(tmp_path, more)
    assert done.returncode == 0, done.stderr
    record = Record(tmp_path / "runs", "first")
    assert essence(record.trials())[:5] == before
    assert len(record.trials()) == 6
    assert Denoiser(record.folder / file_names.EXPORT).manifest["origin"]["trials"] == 6


@pytest.mark.slow
def test_with_two_slots_a_killed_search_loses_and_repeats_nothing(tmp_path):
    codes = [stopped(tmp_path, SEARCH, signal.SIGKILL) for _ in range(2)]
    assert codes == [-signal.SIGKILL] * 2
    assert finished(tmp_path, SEARCH).returncode == 0
    record = Record(tmp_path / "runs", "first")
    trials = record.trials()
    assert len(trials) == len({str(trial.params) for trial in trials}) == 5
    for trial in trials:
        assert trial.state.is_finished()
        assert list(trial.intermediate_values) == list(range(1, trial.last_step + 1))
        decision = report_decision.decide_pruning(trials, trial.number, trial.last_step, record.search)
        assert decision == report_decision.Decision(**trial.user_attrs[trial_attributes.DECISION])
    assert_all_there(record)
