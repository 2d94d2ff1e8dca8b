"""Real searches where little is as it should be: no home, hardly any shared memory, a space that goes too far."""

from __future__ import annotations

import subprocess

import pytest
from drivers import GUARD_SECONDS, HPO, driver, finished

from hpo import decide, results
from hpo.record import Record
from model.denoise import Denoiser

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3 * GUARD_SECONDS)]
SMALL = ["--trials", "1", "--epochs", "1", "--images-per-epoch", "64", "--concurrent", "1"]
SMALL += ["--set", "width=2", "--set", "dropout=0", "--set", "batch_size=16"]


def test_without_a_home_and_with_hardly_any_shared_memory_a_search_is_not_affected(tmp_path, monkeypatch):
    """Ray, W&B and others keep things in the one; Ray's store of 61 MB of images is in the other."""
    monkeypatch.setenv("HOME", "/proc/nowhere")
    alone = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=8m none /dev/shm && exec "$@"', "sh"]
    if subprocess.run([*alone, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no permission to mount in a namespace")
    with driver(tmp_path, [*SMALL, "--wandb", "offline"], (*alone, HPO, "search", "first")) as running:
        _, errors = running.process.communicate(timeout=GUARD_SECONDS)
        assert running.process.returncode == 0, errors
        assert running.left_after(seconds=10) == []
    record = Record(tmp_path / "runs", "first")
    assert record.trial(0).state.name == "COMPLETE"
    assert Denoiser(record.folder / results.EXPORT).manifest["origin"]["trial"] == 0
    assert len(list((record.folder / "wandb").glob("offline-run-*"))) == 2  # the trial and the export


TOO_FAR = """
from dataclasses import replace

def suggest(trial, base):
    return replace(base, lr_g=trial.suggest_float("lr_g", 1e-3, 1.0, log=True))

STARTING_POINTS = ({"lr_g": 1.0}, {"lr_g": 3e-3})
"""


def test_trials_whose_rates_are_too_high_collapse_and_are_pruned_and_where_all_do_nothing_is_exported(tmp_path):
    """By real trainings: two epochs in a row worse than the noisy images, after 30,000 images."""
    (tmp_path / "too_far.py").write_text(TOO_FAR)
    options = ["--space", str(tmp_path / "too_far.py"), "--epochs", "3", "--images-per-epoch", "15100"]
    options += ["--set", "width=4", "--set", "dropout=0", "--set", "batch_size=50", "--set", "output=residual"]
    options += ["--pruner", "none", "--concurrent", "1", "--wandb", "disabled"]
    ended = finished(tmp_path, [*options, "--trials", "1"])
    assert ended.returncode == 3, ended.stderr
    assert "No trial came to a valid result: there is nothing to export." in ended.stderr
    record = Record(tmp_path / "runs", "first")
    assert results.winner(record) is None
    assert not (record.folder / results.EXPORT).exists()
    ended = finished(tmp_path, [*options, "--trials", "2"])
    assert ended.returncode == 0, ended.stderr
    collapsed, healthy = Record(tmp_path / "runs", "first").trials()
    assert (collapsed.state.name, collapsed.user_attrs[decide.DECISION]["reason"]) == ("PRUNED", "collapsed")
    assert (healthy.state.name, len(results.reports_of(healthy))) == ("COMPLETE", 3)
    assert not (record.trial_folder(0) / "best.safetensors").exists()
    assert Denoiser(record.folder / results.EXPORT).manifest["origin"]["trial"] == 1
