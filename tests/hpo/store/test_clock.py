"""The machine's clock is set forward and back while a search runs: nothing is decided by it, nothing lasts less than
nothing."""

from __future__ import annotations

import datetime
import itertools
import re
import time
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from curves import controller, run_all, story
from rich.console import Console

from hpo.policy import leaderboard
from hpo.store import record as record_module
from hpo.store import search_results
from hpo.store.record import Record
from hpo.tracking.tensorboard import TensorBoard
from hpo.views import report_contents
from hpo.views.formatting import headline
from hpo.views.progress import Progress

ROOT = Path(__file__).parents[3]
JUMPS = [0, 3_600, -86_400, 40, -7, 86_400 * 400, -3]  # seconds; each time that it is asked, the next


@pytest.fixture
def jumping(monkeypatch: pytest.MonkeyPatch) -> None:
    jumps, real = itertools.cycle(JUMPS), time.time

    class Jumping(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return datetime.datetime.fromtimestamp(time.time(), tz)

    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    monkeypatch.setattr(record_module, "datetime", Jumping)
    monkeypatch.setattr(report_contents, "datetime", Jumping)
    module = SimpleNamespace(**{**vars(datetime), "datetime": Jumping})
    monkeypatch.setattr("optuna.trial._frozen.datetime", module)


@pytest.mark.usefixtures("jumping")
def test_a_clock_that_jumps_changes_no_decision_and_no_duration_is_negative(record, runs, undisturbed):
    progress = Progress(record.search, "first", 1, Console(quiet=True), folder=record.folder)
    board = TensorBoard(record)
    run_all(controller(record, progress, board))
    progress.close()
    board.close()
    assert progress.current_status().seconds >= 0
    trials = Record(runs, "first").trials()
    starts = [trial.datetime_start for trial in trials]
    assert starts != sorted(starts)  # it did jump
    assert story(trials) == story(undisturbed.trials())
    assert leaderboard.leaderboard(trials, "ssim") == leaderboard.leaderboard(undisturbed.trials(), "ssim")
    assert all(trial["agrees"] for trial in search_results.decisions(record)["trials"])
    assert all(trial.duration >= datetime.timedelta(0) for trial in trials)
    study = optuna.load_study(study_name="first", storage=f"sqlite:///{record.study_file}")
    assert all(trial.duration >= datetime.timedelta(0) for trial in study.trials)
    for row in report_contents.contents(record)["trials"]:
        assert 0 <= row["start"] <= row["end"]
    took = r" epochs were run, \d+( days?, [\d:]+|:[\d:]+) from the first start to the last end"
    assert re.search(took, str(headline(record)))


def test_only_what_is_shown_or_agreed_with_others_asks_for_the_time_of_day():
    """Whoever waits or measures asks the clock that nobody can set."""
    asks = {
        path.relative_to(ROOT).as_posix()
        for package in ("hpo", "model", "search_spaces")
        for path in (ROOT / package).rglob("*.py")
        if re.search(r"\btime\.time\(|\bdatetime\.(utc)?now\(|\bdate\.today\(", path.read_text())
    }
    assert asks == {
        "hpo/store/record.py",  # when a trial began and ended, for people
        "hpo/views/report_contents.py",  # when it was written
        "hpo/run/certificate.py",  # when the test images were read, for people
        "hpo/tracking/tensorboard.py",  # wall times of events
        "hpo/cluster/cluster_state.py",  # how long ago the autoscaler was refused a node, in a message
        "hpo/cluster/preemption_agent.py",  # until when EC2 leaves the node
    }
