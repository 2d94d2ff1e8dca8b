"""Which checkpoints are on disk, after every event, every kill, and in a search of 200 trials."""

from __future__ import annotations

import math
import tempfile
from collections import deque
from pathlib import Path

import pytest
from curves import controller, learned, report
from hypothesis import given, settings
from hypothesis import strategies as st
from killed import Killed
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.cli.arguments import parser
from hpo.policy import leaderboard
from hpo.policy.leaderboard import kept_trials
from hpo.policy.search_config import CHANGEABLE, SearchConfig
from hpo.policy.trial_attributes import CONFIG, DECISION, REPORTS
from hpo.run.export import check_kept
from hpo.store import checkpoint_retention
from hpo.store.checkpoint_retention import Retention
from hpo.store.record import Record
from model.common.errors import ConfigError
from model.config import TrainConfig
from model.training_files import BEST, LAST

OBJECTIVE = "ssim"
ENDS = {"finished": "COMPLETE", "asha": "PRUNED", "diverged": "PRUNED", "collapsed": "PRUNED", "error": "FAIL"}


def trial(number: int, values: list[float], end: str | None) -> FrozenTrial:
    """As the record has it; end: the reason, None while it is under way."""
    state = TrialState[ENDS[end]] if end else TrialState.RUNNING
    reports = [report(epoch, value) for epoch, value in enumerate(values, start=1)]
    attributes = {REPORTS: [r.as_dict() for r in reports], **({DECISION: {"reason": end}} if end else {})}
    made = create_trial(
        state=state,
        value=values[-1] if state in (TrialState.COMPLETE, TrialState.PRUNED) else None,
        params={"lr_g": 1e-3},
        distributions={"lr_g": FloatDistribution(1e-5, 1e-2)},
        intermediate_values={r.epoch: r.ssim for r in reports},
        user_attrs=attributes,
    )
    made.number = number
    return made


def on_disk(folder: Path, name: str) -> set[int]:
    return {int(path.parent.name) for path in folder.glob(f"*/{name}")}


def best_ended(trials: list[FrozenTrial], keep: int) -> set[int]:
    """By the leaderboard that users see."""
    ended = [t for t in trials if t.state.is_finished()]
    rows = [r for r in leaderboard.leaderboard(ended, OBJECTIVE) if r["epochs"]]
    fit = [r["number"] for r in rows if r["stop_reason"] not in ("diverged", "collapsed", "error")]
    return set(fit[:keep])


class Disk:
    """The files that trainings write, and the record of their trials, without either."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.search = SearchConfig(keep_checkpoints=keep)
        self.folder = folder

    def trial_folder(self, number: int) -> Path:
        return self.folder / f"{number:05}"

    def train(self, number: int) -> None:
        folder = self.trial_folder(number)
        folder.mkdir(exist_ok=True)
        for name in (LAST, BEST, "epoch-0001.png"):
            (folder / name).write_bytes(b"whatever")


# Few values, so that many are equal.
values = st.lists(st.integers(1, 6).map(lambda tenths: tenths / 10), min_size=1, max_size=3)
ends = st.sampled_from(["finished", "asha", "asha", "diverged", "collapsed", "error"])
plans = st.lists(st.tuples(values, ends) | st.just(([], "error")), max_size=14)


@settings(deadline=None, max_examples=40)
@given(plans, st.randoms(use_true_random=False), st.integers(3, 5))
def test_after_every_event_the_disk_has_the_best_and_the_unfinished(plan, random, keep):
    with tempfile.TemporaryDirectory() as folder:
        disk = Disk(Path(folder), keep)
        listener = Retention(disk)
        trials: dict[int, FrozenTrial] = {}
        under_way: list[int] = []
        waiting = deque(range(len(plan)))
        while waiting or under_way:
            if waiting and len(under_way) < 3:
                number = waiting.popleft()
                under_way.append(number)
                trials[number] = trial(number, [], None)
                disk.train(number)
            else:
                number = under_way[random.randrange(len(under_way))]
                planned, end = plan[number]
                told = len(trials[number].intermediate_values)
                disk.train(number)
                if told < len(planned):
                    trials[number] = trial(number, planned[: told + 1], None)
                else:
                    trials[number] = trial(number, planned, end)
                    under_way.remove(number)
            listener.on_trial_update(trials[number])
            everything = list(trials.values())
            assert on_disk(Path(folder), LAST) == set(under_way)
            assert on_disk(Path(folder), BEST) == set(under_way) | best_ended(everything, keep)
            assert kept_trials(everything, disk.search) == best_ended(everything, keep)
            assert set(leaderboard.finalists(everything, disk.search)) <= on_disk(Path(folder), BEST)
            assert on_disk(Path(folder), "*.png") == set(trials)


@settings(deadline=None)
@given(plans, st.integers(0, 30), st.integers(3, 5))
def test_a_kill_between_any_two_removals_is_made_up_for_by_the_continued_search(plan, removals, keep):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        disk = Disk(Path(folder), keep)
        trials = [trial(number, planned, end) for number, (planned, end) in enumerate(plan)]
        left, remove = iter(range(removals)), checkpoint_retention._unlink

        def remove_or_die(path: Path) -> None:
            if next(left, None) is None:
                raise Killed
            remove(path)

        for number in range(len(trials)):
            disk.train(number)
            (disk.trial_folder(number) / f".{LAST}.4711").write_bytes(b"half")  # its process died as well
        patch.setattr(checkpoint_retention, "_unlink", remove_or_die)
        try:
            killed = Retention(disk)
            for ended in trials:
                killed.on_trial_update(ended)
        except Killed:
            pass
        patch.undo()
        continued = Retention(disk)
        for ended in trials:
            continued.on_trial_update(ended)
        assert on_disk(Path(folder), BEST) == best_ended(trials, keep)
        assert on_disk(Path(folder), LAST) == on_disk(Path(folder), ".*4711") == set()


def test_a_search_that_is_continued_with_fewer_lets_more_go(tmp_path):
    trials = [trial(number, [number / 10], "finished") for number in range(8)]
    for keep, numbers in [(5, {3, 4, 5, 6, 7}), (3, {5, 6, 7}), (6, {5, 6, 7})]:
        disk = Disk(tmp_path, keep)
        if keep == 5:
            for number in range(8):
                disk.train(number)
        listener = Retention(disk)
        for ended in trials:
            listener.on_trial_update(ended)
        assert on_disk(tmp_path, BEST) == numbers


def test_a_file_that_cannot_be_removed_stops_nothing(tmp_path, caplog):
    disk = Disk(tmp_path, 3)
    disk.train(0)
    last = disk.trial_folder(0) / LAST
    last.unlink()
    last.mkdir()
    (disk.folder / "00001").write_text("not even a folder")
    listener = Retention(disk)
    for number in range(3):  # the third one's folder was never made
        listener.on_trial_update(trial(number, [0.5], "diverged"))
    stays = [message.partition(": cannot be deleted")[0] for message in caplog.messages]  # what is not there is no news
    assert stays == [str(last), *(str(disk.trial_folder(1) / name) for name in (LAST, BEST))]
    assert on_disk(tmp_path, BEST) == set()


def test_a_report_touches_no_file_and_an_end_a_few(tmp_path, monkeypatch):
    removed: list[Path] = []
    monkeypatch.setattr(checkpoint_retention, "_unlink", removed.append)
    listener = Retention(Disk(tmp_path, 3))
    for number in range(100):
        listener.on_trial_update(trial(number, [], None))
        listener.on_trial_update(trial(number, [number / 100], None))
        assert len(removed) <= 2 * number
        for _ in range(2):  # told twice, done once
            listener.on_trial_update(trial(number, [number / 100], "finished"))
    assert len(removed) == 100 + 97


def test_200_small_trials_leave_ten_checkpoints(runs):
    """Four at a time, on a real record; a checkpoint is 10,000 bytes."""
    size, slots = 10_000, 4
    search = SearchConfig(trials=200, epochs=4, objectives=(OBJECTIVE,), sampler="random", set={"width": 4})
    record = Record.create(runs, "first", search)
    driver = controller(record, Retention(record))
    written, most = 0, 0
    under_way: deque[tuple[int, list]] = deque()
    while True:
        while len(under_way) < slots and (suggested := driver.next_trial()) is not None:
            under_way.append((suggested.number, []))
        if not under_way:
            break
        number, reports = under_way.popleft()
        config = TrainConfig.from_dict(record.trial(number).user_attrs[CONFIG])
        reports.append(learned(config, len(reports) + 1))
        folder = record.trial_folder(number)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LAST).unlink(missing_ok=True)
        (folder / LAST).write_bytes(bytes(size))
        written += size
        if all(not reports[-1].ssim < earlier.ssim for earlier in reports) or math.isnan(reports[-1].ssim):
            (folder / BEST).unlink(missing_ok=True)
            (folder / BEST).hardlink_to(folder / LAST)
        if driver.on_report(number, reports).action == "continue":
            under_way.append((number, reports))
            continue
        files = {path.stat().st_ino for path in (record.folder / "trials").glob("*/*.safetensors")}
        most = max(most, size * len(files))
        assert len(files) <= search.keep_checkpoints + 2 * len(under_way)
    trials = record.trials()
    assert len(trials) == 200
    assert on_disk(record.folder / "trials", LAST) == set()
    assert on_disk(record.folder / "trials", BEST) == best_ended(trials, 10) == kept_trials(trials, search)
    assert set(leaderboard.finalists(trials, search)) <= kept_trials(trials, search)
    print(f"200 trials: {written:,} bytes of checkpoints written, at most {most:,} on disk, {10 * size:,} stay")


def test_a_checkpoint_that_was_let_go_is_refused_with_those_that_stayed(record):
    driver = controller(record)
    for number in range(2):
        driver.next_trial()
        folder = record.trial_folder(number)
        folder.mkdir(parents=True)
        (folder / BEST).write_bytes(b"whatever")
    driver.next_trial()
    check_kept(record, 1)
    record.fail(0, "its node is gone")
    (record.trial_folder(0) / BEST).unlink()
    with pytest.raises(
        ConfigError, match=r"trial=0: its checkpoint was deleted. first has those of trials 1; .*--keep-checkpoints"
    ):
        check_kept(record, 0)
    with pytest.raises(ConfigError, match="trial=2: its checkpoint does not exist yet"):
        check_kept(record, 2)


def test_the_finalists_are_always_kept():
    with pytest.raises(ConfigError, match="keep_checkpoints=2: must be at least 3"):
        SearchConfig(keep_checkpoints=2)
    assert SearchConfig().keep_checkpoints == 10
    assert "keep_checkpoints" in CHANGEABLE
    assert parser().parse_args(["search", "first", "--keep-checkpoints", "4"]).keep_checkpoints == 4
