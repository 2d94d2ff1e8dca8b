"""W&B's offline files, read back with W&B's own reader."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from typing import Any

import pytest
from wandb.util import get_core_path

from hpo.policy import leaderboard
from hpo.policy.trial_attributes import DECISION
from hpo.store.record import Record

# What `wandb leet inspect --json` runs, without the second of imports that it takes before.
_LEET = [get_core_path(), "leet", "inspect", "--no-observability", "--json"]


# By the reason of a trial's end.
TAGS = {"finished": "complete", "asha": "pruned", "diverged": "diverged", "collapsed": "collapsed"}


def fragments(record: Record) -> list[Path]:
    """Of the trials, in their order."""
    found = (record.folder / "wandb").glob(f"offline-run-*-{record.id}-?????")
    return sorted(found, key=lambda path: path.name.rpartition("-")[2])


def export_fragment(record: Record) -> Path:
    (found,) = (record.folder / "wandb").glob(f"offline-run-*-{record.id}-export-*")
    return found


def read(fragment: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Summary and history."""
    (file,) = fragment.glob("run-*.wandb")
    where = ["--run-file", str(file), str(fragment.parent)]
    summary, lines = (
        subprocess.run([*_LEET, *options, *where], capture_output=True, check=True, timeout=60).stdout
        for options in (["--summary"], [])
    )
    history = [row["history"]["item"] for row in map(json.loads, lines.splitlines()) if row["type"] == "history"]
    return json.loads(summary), history


def everything_in(fragment: Path) -> str:
    """Every record, as JSON lines."""
    (file,) = fragment.glob("run-*.wandb")
    command = [*_LEET, "--run-file", str(file), str(fragment.parent)]
    return subprocess.run(command, capture_output=True, check=True, timeout=60, text=True).stdout


def assert_all_there(record: Record) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """One run for each trial, with every epoch once. Gives what was read."""
    trials, everything = record.trials(), []
    assert [path.name.rpartition("-")[2] for path in fragments(record)] == [f"{t.number:05}" for t in trials]
    for fragment, trial in zip(fragments(record), trials, strict=True):
        summary, history = read(fragment)
        told = leaderboard.reports_of(trial)
        assert [row["epoch"] for row in history] == [report.epoch for report in told]
        for row, report in zip(history, told, strict=True):
            if math.isfinite(report.ssim):
                assert (row["val/ssim"], row["val/psnr"]) == pytest.approx((report.ssim, report.psnr_db))
            assert row["train/gen_total"] == pytest.approx(report.gen_total)
        is_dead = trial.user_attrs.get(DECISION, {}).get("reason") in ("diverged", "collapsed")
        assert summary["state"] == ("failed" if is_dead else "finished")
        everything.append((summary, history))
    return everything
