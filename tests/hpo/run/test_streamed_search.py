"""Images above what may stay in memory, through the commands: nothing else is different, and nothing is left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import skimage.data
from drivers import GUARD_SECONDS, driver, finished, num_reports
from PIL import Image

from hpo.cli.commands import main
from hpo.policy import leaderboard
from hpo.store import file_names
from hpo.store.record import Record
from model.data.memory_mapped import IN_MEMORY
from model.denoise import read_manifest

SMALL = ["--crop", "32", "--images-per-epoch", "32", "--set", "width=4", "--set", "batch_size=8"]
TIMES = ("seconds", "eval_seconds", "images_per_second")


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        Image.fromarray(getattr(skimage.data, name)()[:160, :160]).save(folder / f"{name}.png")
    return folder


def test_a_training_by_hand_is_the_same(photographs, tmp_path, monkeypatch, capsys, caplog):
    epochs = {}
    for to in ("in_memory", "streamed"):
        if to == "streamed":
            monkeypatch.setenv(IN_MEMORY, "0")
        options = ["--data", str(photographs), *SMALL, "--epochs", "1", "--json"]
        assert main(["train", "--to", str(tmp_path / to), *options]) == 0
        (epoch,) = json.loads(capsys.readouterr().out)["epochs"]
        epochs[to] = {name: value for name, value in epoch.items() if name not in TIMES}
        assert not list((tmp_path / to).glob(".*"))
    assert epochs["streamed"] == epochs["in_memory"]
    assert "streamed from" in caplog.text


@pytest.mark.slow
@pytest.mark.timeout(3 * GUARD_SECONDS)
def test_a_search_that_is_killed_and_continued_is_the_same_and_leaves_no_pixels(photographs, tmp_path, monkeypatch):
    options = ["--data", str(photographs), *SMALL, "--trials", "2", "--epochs", "2", "--final-epochs", "1"]
    options += ["--max-concurrent", "1", "--wandb", "disabled"]
    found = []
    for where in ("in_memory", "streamed"):
        folder, runs = tmp_path / where, tmp_path / where / "runs"
        folder.mkdir()
        if where == "streamed":
            monkeypatch.setenv(IN_MEMORY, "0")
            with driver(folder, options) as running:
                running.wait_for(lambda folder=folder: num_reports(folder) > 0)
                running.process.kill()
                running.process.wait()
            (left,) = runs.glob(".*")
        ended = finished(folder, options)
        assert ended.returncode == 0, ended.stderr
        assert ("streamed from" in ended.stderr) is (where == "streamed")
        assert not list(runs.glob(".*"))
        record = Record(runs, "first")
        reports = [report for trial in record.trials() for report in leaderboard.reports_of(trial)]
        metrics = [(report.epoch, report.ssim, report.psnr_db, report.gen_total) for report in reports]
        found.append(
            (metrics, record.metadata()["images"], read_manifest(record.folder / file_names.EXPORT)["metrics"])
        )
    assert not left.exists()
    assert found[0] == found[1]
