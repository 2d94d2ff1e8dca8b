"""What became of each trial is told alike wherever trials are shown."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path

import pytest
from curves import append_report, controller, report
from rich.console import Console
from tensorboard_files import Status as Session
from tensorboard_files import hparams_page
from wandb_files import fragments, read

from hpo.cli.commands import main
from hpo.policy import leaderboard, trial_attributes
from hpo.policy.leaderboard import rank
from hpo.policy.search_config import SearchConfig
from hpo.store.record import Record
from hpo.tracking.tensorboard import FOLDER, TensorBoard
from hpo.tracking.wandb_tracker import Tracker
from hpo.views.live_table import render
from hpo.views.report_contents import contents
from hpo.views.status_file import Status

OUTCOMES = ["finished", "pruned", "collapsed", "diverged", "failed", "running", "running"]


@pytest.fixture
def one_of_each(runs: Path) -> Record:
    """In the order of OUTCOMES; the one that collapsed had the best epoch of all, the last one none yet."""
    record = Record.create(
        runs, "first", SearchConfig(trials=9, epochs=4, grace_period=2, reduction_factor=3, objectives=("ssim",))
    )
    loop = controller(record)
    for _ in OUTCOMES:
        assert loop.next_trial()
    reports = {
        0: [report(epoch, 0.8) for epoch in (1, 2, 3, 4)],
        1: [report(1, 0.1), report(2, 0.1), report(3, 0.1)],
        2: [report(1, 0.95), report(2, 0.3, output_std=0.0), report(3, 0.3, output_std=0.0)],
        3: [report(1, 0.7), report(2, math.nan)],
        4: [report(1, 0.9)],
        5: [report(1, 0.6)],
    }
    for number, told in reports.items():
        for each in told:
            if append_report(record, number, each).action != "continue":
                break
    record.fail(4, "the machine's fault")
    reasons = [trial.user_attrs.get(trial_attributes.DECISION, {}).get("reason") for trial in record.trials()]
    assert reasons == ["finished", "asha", "collapsed", "diverged", None, None, None]
    return record


def rows(text: str) -> dict[int, str]:
    """Of a table in a terminal: the state by the number of the trial."""
    found = re.findall(r"^ *(\d+)  +\d/4 .*?(running|finished|pruned at \d|collapsed|diverged|failed)", text, re.M)
    return {int(number): state for number, state in found}


def test_every_place_that_shows_trials_tells_the_same_of_each(one_of_each, runs, capsys):
    record, trials = one_of_each, one_of_each.trials()
    expected = dict(enumerate(OUTCOMES))
    in_words = {number: {"pruned": "pruned at 2"}.get(o, o) for number, o in expected.items()}

    assert main(["show", "first", "--runs", str(runs)]) == 0
    shown = capsys.readouterr().out
    assert rows(shown) == in_words
    assert "5/9 trials: 1 finished, 1 pruned, 1 diverged, 1 collapsed, 1 failed, 2 running" in " ".join(shown.split())
    assert "winner so far: trial 0" in shown

    assert main(["show", "first", "--json", "--runs", str(runs)]) == 0
    document = json.loads(capsys.readouterr().out)
    reasons = {"asha": "pruned", "error": "failed", None: "running"}
    assert {t["number"]: reasons.get(t["stop_reason"], t["stop_reason"]) for t in document["trials"]} == expected
    assert list(rows(shown)) == [row["number"] for row in document["trials"]]

    told = contents(record)
    assert {t["number"]: t["kind"] for t in told["trials"]} == expected
    assert {t["number"] for t in told["trials"] if t["candidate"]} == {0, 1, 5}
    spent = {row["kind"]: row["trials"] for row in told["spent"]}
    assert spent == Counter(OUTCOMES)

    drawn = Console(width=100)
    with drawn.capture() as live:
        drawn.print(render("first", record.search, trials, Status(), width=100, height=40))
    assert rows(live.get()).items() <= in_words.items()
    assert "1 finished, 1 pruned, 1 diverged, 1 collapsed, 1 failed, 2 running" in " ".join(live.get().split())

    tracker = Tracker(record)
    for trial in trials:
        tracker.on_trial_update(trial)
    tracker.close()
    in_wandb = {number: read(fragment)[0] for number, fragment in enumerate(fragments(record))}
    tags = {number: summary["tags"] for number, summary in in_wandb.items() if number < 5}
    assert tags == {number: [outcome.replace("finished", "complete")] for number, outcome in list(expected.items())[:5]}
    states = [in_wandb[number]["state"] for number in range(5)]
    assert states == ["finished", "finished", "failed", "failed", "failed"]

    board = TensorBoard(record)
    for trial in trials:
        board.on_trial_update(trial)
    board.close()
    sessions = {name: group.sessions[0].status for name, group in hparams_page(record.folder / FOLDER).items()}
    assert [sessions[f"{number:05}"] for number in range(2)] == [Session.STATUS_SUCCESS] * 2
    assert [sessions[f"{number:05}"] for number in range(2, 5)] == [Session.STATUS_FAILURE] * 3
    assert not {sessions[f"{number:05}"] for number in (5, 6)} & {Session.STATUS_SUCCESS, Session.STATUS_FAILURE}

    assert {trial.number for trial in trials if rank(trial)} == set(leaderboard.candidates(trials)) == {0, 1, 5}
