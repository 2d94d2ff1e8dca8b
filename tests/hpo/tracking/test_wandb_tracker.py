"""W&B's offline files, read back with W&B's own reader. No Ray."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import fronts
import pytest
import wandb
from curves import controller, run_all, story
from PIL import Image
from wandb_files import TAGS, assert_all_there, fragments

from hpo.policy import leaderboard
from hpo.policy.trial_attributes import DECISION
from hpo.store.record import Record
from hpo.tracking import wandb_tracker
from hpo.tracking.wandb_login import remove_inherited_settings
from hpo.tracking.wandb_runs import _scatter
from hpo.tracking.wandb_tracker import Tracker


def test_each_trial_is_a_run_with_its_config_its_epochs_its_end_and_its_best(record):
    record.update_config({"trials": 4})
    tracker = Tracker(record)
    # One strip an epoch, as trials write them beside their checkpoints.
    record.trial_folder(0).mkdir(parents=True)
    Image.new("L", (8, 8)).save(record.trial_folder(0) / "epoch-0001.png")
    run_all(controller(record, tracker))
    tracker.close()
    for (summary, history), trial in zip(assert_all_there(record), record.trials(), strict=True):
        best = leaderboard.best_report(trial, "ssim")
        config = {name: value for name, value in summary["config"].items() if value is not None}
        assert config.items() >= {**trial.params, "width": 4, "trial": trial.number}.items()
        assert summary["tags"] == [TAGS[trial.user_attrs[DECISION]["reason"]]]
        assert summary["summary"]["best/epoch"] == best.epoch
        assert summary["summary"]["best/ssim"] == pytest.approx(best.ssim)
        assert summary["summary"]["best/psnr"] == pytest.approx(best.psnr_db)
        assert summary["summary"]["best/haarpsi"] == pytest.approx(best.haarpsi)
        curve = [report.haarpsi for report in leaderboard.reports_of(trial) if not math.isnan(report.haarpsi)]
        assert [row["val/haarpsi"] for row in history if "val/haarpsi" in row] == pytest.approx(curve)
        pictures = [row["epoch"] for row in history if any(name.startswith("val/strip") for name in row)]
        assert pictures == ([1] if trial.number == 0 else [])


def test_the_figures_that_are_known_before_training_are_in_each_runs_summary(runs):
    search = replace(fronts.SEARCH, trials=8, limit=("params<=1000",))
    fronts.run(Record.create(runs, "first", search))
    record = Record(runs, "first")
    tracker = Tracker(record)
    for trial in record.trials():
        tracker.on_trial_update(trial)
    tracker.close()
    outcomes = set()
    for (summary, _), trial in zip(assert_all_there(record), record.trials(), strict=True):
        width = trial.params["width"]
        assert summary["summary"]["known/latency"] == 0.5 * width
        assert summary["summary"]["known/params"] == 100 * width**2
        outcomes |= set(summary["tags"])
    assert {"infeasible", "complete"} <= outcomes
    assert _scatter(search) == {"known/latency": "best/psnr"}
    assert _scatter(fronts.SEARCH.__class__(objectives=("params", "ssim", "l1"))) == {
        "known/params": "best/ssim",
        "best/l1": "best/ssim",
    }


LEFT = {"RUN_ID": "abc", "SWEEP_ID": "s1", "NAME": "x", "RUN_GROUP": "g", "JOB_TYPE": "j", "NOTES": "n", "TAGS": "a,b"}
LEFT |= {"RESUME": "must", "RESUME_FROM": "abc?_step=3", "FORK_FROM": "abc?_step=3", "SWEEP_PARAM_PATH": "none"}


def test_what_another_job_left_for_its_one_run_is_left_out_and_told(record, monkeypatch, caplog):
    for name, value in LEFT.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    remove_inherited_settings("offline")
    (told,) = caplog.messages
    assert all(f"WANDB_{name}" in told for name in LEFT)
    remove_inherited_settings("offline")
    assert len(caplog.messages) == 1
    record.update_config({"trials": 2})
    tracker = Tracker(record)
    run_all(controller(record, tracker))
    tracker.close()
    for (summary, _), number in zip(assert_all_there(record), range(2), strict=True):
        assert summary["name"] == f"first-{number:05}"
        assert (summary["run_id"], summary["notes"]) == (f"{record.id}-{number:05}", "")
        assert not {"a", "b"} & set(summary["tags"])


@pytest.mark.parametrize(
    ("mode", "wandb", "is_named"),
    [
        ("disabled", "offline", True),
        ("online", "offline", True),
        ("offline", "online", True),
        ("online", "disabled", True),
        ("offline", "offline", False),
        ("dryrun", "offline", False),
        ("run", "online", False),
        (None, "online", False),
    ],
)
def test_a_mode_that_contradicts_is_named_and_one_that_agrees_is_not(monkeypatch, caplog, mode, wandb, is_named):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if mode:
        monkeypatch.setenv("WANDB_MODE", mode)
    remove_inherited_settings(wandb)
    told = [f"W&B: ignoring WANDB_MODE={mode}, because --wandb is {wandb}"]
    assert caplog.messages == (told if is_named else [])


SUPPORT = Path(__file__).parents[2] / "support"
DRIVER = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from curves import controller, run_all, train
from hpo.store.record import Record
from hpo.tracking.wandb_tracker import Tracker
record = Record(Path(sys.argv[1]), "first")
driver = controller(record, tracker := Tracker(record))
train(driver, driver.next_trial().number, [])
train(driver, driver.next_trial().number, [], epochs=1)
while len(list((record.folder / "wandb").glob("offline-run-*"))) < 2:  # the second run is open
    time.sleep(0.05)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_tracker_that_was_killed_leaves_nothing_out_and_nothing_twice(record, runs):
    """W&B writes its file every 15 seconds and at the end: what was open is cut short."""
    record.update_config({"trials": 3})
    command = [sys.executable, "-c", DRIVER, str(runs), str(SUPPORT)]
    # Without the W&B process of this one, which would outlive the driver and keep its runs open.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    driver = subprocess.run(command, check=False, timeout=120, env=environment)
    assert driver.returncode == -signal.SIGKILL
    assert len(fragments(record)) == 2
    again = Record(runs, "first")
    tracker = Tracker(again)
    run_all(controller(again, tracker))
    tracker.close()
    assert_all_there(again)


def test_a_trial_that_ended_just_before_the_kill_is_not_lost(record, runs):
    """It is on the record, and its run was never closed."""
    record.update_config({"trials": 1})
    run_all(controller(record))  # as if W&B had seen none of it
    record.update_config({"trials": 2})
    tracker = Tracker(record)
    run_all(controller(record, tracker))
    tracker.close()
    assert_all_there(record)
    before = {path.name: (path / "files").stat().st_mtime_ns for path in fragments(record)}
    tracker = Tracker(Record(runs, "first"))
    run_all(controller(Record(runs, "first"), tracker))
    tracker.close()
    assert {path.name: (path / "files").stat().st_mtime_ns for path in fragments(record)} == before  # whole ones stay


def test_a_queue_that_is_full_loses_nothing(record, monkeypatch):
    record.update_config({"trials": 2})
    monkeypatch.setattr(wandb_tracker, "_QUEUE_SIZE", 1)
    search_is_done, init = threading.Event(), wandb.init

    def slow_init(**options: Any) -> Any:
        assert search_is_done.wait(60)
        return init(**options)

    monkeypatch.setattr(wandb, "init", slow_init)
    tracker = Tracker(record)
    run_all(controller(record, tracker))
    search_is_done.set()
    tracker.close()
    assert_all_there(record)


def test_a_search_does_not_notice_that_wandb_fails(record, runs, monkeypatch, caplog):
    def refuse(**_: Any) -> Any:
        raise wandb.errors.CommError("the server is away")

    monkeypatch.setattr(wandb, "init", refuse)
    tracker = Tracker(record)
    run_all(controller(record, tracker))
    tracker.close()
    untracked = Record.create(runs, "untracked", record.search)
    run_all(controller(untracked))
    assert story(record.trials()) == story(untracked.trials())
    assert "the search continues without it" in caplog.text
    assert "the server is away" in caplog.text
    assert "Traceback" not in caplog.text
    assert fragments(record) == []


def test_a_file_of_anothers_that_wandb_reads_is_told_in_a_line(record, tmp_path, monkeypatch, caplog):
    """W&B takes config-defaults.yaml of the current folder for its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config-defaults.yaml").write_text("lr: 0.1\n")
    record.update_config({"trials": 1})
    tracker = Tracker(record)
    run_all(controller(record, tracker))
    tracker.close()
    (told,) = [line for line in caplog.messages if line.startswith("W&B")]
    assert "the search continues without it" in told
    assert not any(line.exc_info for line in caplog.records if line.name.startswith("hpo"))
