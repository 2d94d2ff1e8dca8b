"""Real searches where little is as it should be: no home, hardly any shared memory, a space that goes too far."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from drivers import GUARD_SECONDS, HPO, driver, finished

from hpo.policy import leaderboard, trial_attributes
from hpo.store import file_names, search_results
from hpo.store.record import Record
from model.denoise import Denoiser

ROOT = Path(__file__).parents[2]
SMALL = ["--trials", "1", "--epochs", "1", "--images-per-epoch", "64", "--max-concurrent", "1"]
SMALL += ["--set", "width=2", "--set", "dropout=0", "--set", "batch_size=16"]


@pytest.mark.slow
@pytest.mark.timeout(3 * GUARD_SECONDS)
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
    assert Denoiser(record.folder / file_names.EXPORT).manifest["origin"]["trial"] == 0
    assert len(list((record.folder / "wandb").glob("offline-run-*"))) == 2  # the trial and the export


TOO_FAR = """
from dataclasses import replace

def suggest(trial, base):
    return replace(base, lr_g=trial.suggest_float("lr_g", 1e-3, 1.0, log=True))

STARTING_POINTS = ({"lr_g": 1.0}, {"lr_g": 3e-3})
"""


@pytest.mark.slow
@pytest.mark.timeout(3 * GUARD_SECONDS)
def test_trials_whose_rates_are_too_high_collapse_and_are_pruned_and_where_all_do_nothing_is_exported(tmp_path):
    """By real trainings: two epochs in a row worse than the noisy images, after 30,000 images."""
    (tmp_path / "too_far.py").write_text(TOO_FAR)
    options = ["--space", str(tmp_path / "too_far.py"), "--epochs", "3", "--images-per-epoch", "15100"]
    options += ["--set", "width=4", "--set", "dropout=0", "--set", "batch_size=50", "--set", "output=residual"]
    options += ["--pruner", "none", "--max-concurrent", "1", "--wandb", "disabled"]
    ended = finished(tmp_path, [*options, "--trials", "1"])
    assert ended.returncode == 3, ended.stderr
    assert "No trial produced a valid result: there is nothing to export." in ended.stderr
    record = Record(tmp_path / "runs", "first")
    assert search_results.winner(record) is None
    assert not (record.folder / file_names.EXPORT).exists()
    ended = finished(tmp_path, [*options, "--trials", "2"])
    assert ended.returncode == 0, ended.stderr
    collapsed, healthy = Record(tmp_path / "runs", "first").trials()
    assert (collapsed.state.name, collapsed.user_attrs[trial_attributes.DECISION]["reason"]) == ("PRUNED", "collapsed")
    assert (healthy.state.name, len(leaderboard.reports_of(healthy))) == ("COMPLETE", 3)
    assert not (record.trial_folder(0) / "best.safetensors").exists()
    assert Denoiser(record.folder / file_names.EXPORT).manifest["origin"]["trial"] == 1


# In a namespace where it has no entry in passwd; the interpreter may lie in a home that others cannot enter.
NOBODY = ["env", "-u", "HOME", "-u", "USER", "-u", "LOGNAME", "-u", "LNAME", "-u", "USERNAME"]
NOBODY += ["unshare", "--user", "--map-user=12345", "--map-group=12345"]


@pytest.fixture
def nobody() -> list[str]:
    """What makes of a command one of such a user, without HOME."""
    if subprocess.run([*NOBODY, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no permission to make a namespace of users")
    for ask in ("import pathlib; pathlib.Path.home()", "import getpass; getpass.getuser()"):
        assert subprocess.run([*NOBODY, sys.executable, "-c", ask], check=False, capture_output=True).returncode
    return NOBODY


TRACKED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from curves import controller, run_all
from hpo.policy.search_config import SearchConfig
from hpo.store.record import Record
from hpo.tracking.wandb_tracker import Tracker
record = Record.create(Path(sys.argv[1]), "first", SearchConfig(trials=1, epochs=2, set={"width": 4}))
tracker = Tracker(record)
run_all(controller(record, tracker))
tracker.close()
print(len(list((record.folder / "wandb").glob("*.whole"))))
import torch._dynamo.debug_utils  # it asks for the user's name
"""


def test_a_user_without_an_entry_in_passwd_and_without_a_home_has_commands_and_wandb(nobody, tmp_path):
    """Ray's, W&B's and torch's modules ask for both while they are imported."""
    given = {"cwd": ROOT, "capture_output": True, "text": True}
    commands = {"list": 0, "search x --epochs 0": 2, "search x --storage ~/x --epochs 0": 2, "sync nope": 2}
    for words, code in commands.items():
        hpo = [sys.executable, "-m", "hpo.cli", *words.split(), "--runs", str(tmp_path / "runs")]
        done = subprocess.run([*nobody, *hpo], check=False, **given)
        assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    tracked = [sys.executable, "-c", TRACKED, str(tmp_path / "runs"), str(ROOT / "tests/support")]
    done = subprocess.run([*nobody, *tracked], check=False, **given)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


@pytest.mark.slow
@pytest.mark.timeout(3 * GUARD_SECONDS)
def test_such_a_user_has_whole_searches(nobody, tmp_path):
    command = (*nobody, sys.executable, "-m", "hpo.cli", "search", "first", "--runs", str(tmp_path / "runs"))
    with driver(ROOT, [*SMALL, "--wandb", "offline"], command) as running:
        _, errors = running.process.communicate(timeout=GUARD_SECONDS)
        assert running.process.returncode == 0, errors
    assert Record(tmp_path / "runs", "first").trial(0).state.name == "COMPLETE"
