"""A real search whose driver is killed, and the trace of its epochs."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from curves import SPACE, controller
from drivers import GUARD_SECONDS, driver

from hpo.policy import leaderboard, report_decision, trial_attributes
from hpo.policy.search_config import SEARCH_FILE, SearchConfig
from hpo.store import search_results
from hpo.store.file_names import STUDY_FILE
from hpo.store.record import Record
from model.config import TrainConfig
from model.data.data_config import DataConfig
from model.data.device_images import DeviceImages
from model.trainer import SEARCH_VALIDATION_IMAGES, load_generator, validate
from model.training_files import BEST
from model.training_run import TrainingRun

# Every Python process of the search loads this first: each epoch that begins, and each that is on disk, is a line.
TRACER = """
import importlib.abc, importlib.util, os, sys

def write(event, run, epoch):
    file = os.open(os.environ["TRACE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{os.environ['ATTEMPT']} {event} {int(run.folder.name)} {epoch}\\n".encode())
    os.close(file)

class Tracer(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "model.training_run":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def load_traced(module):
            load(module)
            run_epoch = module.TrainingRun.run_epoch

            def traced(run):
                epoch = len(run.reports) + 1
                write("began", run, epoch)
                report = run_epoch(run)
                write("ended", run, epoch)
                return report

            module.TrainingRun.run_epoch = traced

        spec.loader.exec_module = load_traced
        return spec

sys.meta_path.insert(0, Tracer())
"""


@dataclass(frozen=True)
class Line:
    """A line of the trace."""

    attempt: int
    event: str
    trial: int
    epoch: int


@dataclass(frozen=True, kw_only=True)
class Killed:
    """A search whose driver is killed `kills` times."""

    folder: Path
    kills: int
    slots: int
    trials: int
    epochs: int
    images: int  # an epoch
    pruner: str = "none"

    @property
    def options(self) -> list[str]:
        settings = ["width=4", "dropout=0", "batch_size=16"]
        return [
            *("--trials", str(self.trials), "--epochs", str(self.epochs), "--images-per-epoch", str(self.images)),
            *("--pruner", self.pruner, "--max-concurrent", str(self.slots)),
            *("--final-epochs", "0", "--wandb", "disabled"),
            *(part for setting in settings for part in ("--set", setting)),
        ]

    @property
    def record(self) -> Record:
        return Record(self.folder / "runs", "first")

    def trace(self) -> list[Line]:
        path = self.folder / "trace"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [Line(int(attempt), event, int(trial), int(epoch)) for attempt, event, trial, epoch in lines]

    def finished(self) -> dict[int, Any]:
        """Return the ended trials by number."""
        if not (self.folder / "runs" / "first" / SEARCH_FILE).exists():
            return {}
        return {t.number: t for t in self.record.trials() if t.state.is_finished()}

    def run(self, attempt: int, until: Callable[[], bool] | None, seconds: float = 0) -> None:
        """Run a driver. Kill it so many seconds after the condition `until` holds; None lets it end."""
        os.environ["ATTEMPT"] = str(attempt)
        before = self.finished()
        with driver(self.folder, self.options) as running:
            ray_folders: set[str] = set()
            if until is None:
                _, errors = running.process.communicate(timeout=GUARD_SECONDS)
                assert running.process.returncode == 0, errors
            else:
                running.wait_for(until)
                time.sleep(seconds)
                assert running.process.poll() is None, "it ended before it could be killed"
                ray_folders = running.ray_folders() if until != self.start_up else set()
                running.process.send_signal(signal.SIGKILL)
                running.process.communicate(timeout=GUARD_SECONDS)
            assert running.left_after(seconds=10) == []
            assert [folder for folder in ray_folders if Path(folder).exists()] == []
        after = self.finished()
        assert {number: after.get(number) for number in before} == before
        assert [line for line in self.trace() if line.attempt == attempt and line.trial in before] == []

    def start_up(self) -> bool:
        """Hold from the start on."""
        return True

    def epochs_begin(self, number: int) -> Callable[[], bool]:
        """Hold once so many more epochs have begun."""
        number += len(self.began())
        return lambda: len(self.began()) >= number

    def trials_are_over(self) -> bool:
        """Hold from the last report on, while finalists are measured and the winner is exported."""
        study = self.folder / "runs" / "first" / STUDY_FILE
        if not study.exists():
            return False
        with closing(sqlite3.connect(f"file:{study}?mode=ro", uri=True)) as connection:
            (ended,) = connection.execute("SELECT count(*) FROM trials WHERE state != 'RUNNING'").fetchone()
        return bool(ended == self.trials)

    def began(self) -> list[Line]:
        """Return the lines of epochs that began."""
        return [line for line in self.trace() if line.event == "began"]


@contextmanager
def traced(folder: Path) -> Iterator[None]:
    (folder / "sitecustomize.py").write_text(TRACER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        patch.setenv("TRACE", str(folder / "trace"))
        patch.setenv("ATTEMPT", "")
        yield


def assert_nothing_was_lost_or_repeated(search: Killed) -> None:
    trials = search.record.trials()
    assert len(search.finished()) == len(trials) == search.trials
    assert len({str(sorted(trial.params.items())) for trial in trials}) == search.trials
    for trial in trials:
        assert list(trial.intermediate_values) == list(range(1, trial.last_step + 1))
        assert [report.epoch for report in leaderboard.reports_of(trial)] == list(trial.intermediate_values)
        assert trial.last_step == search.epochs or trial.state.name == "PRUNED"
        decision = report_decision.decide_pruning(trials, trial.number, trial.last_step, search.record.search)
        assert decision == report_decision.Decision(**trial.user_attrs[trial_attributes.DECISION])

    trace, begun = search.trace(), search.began()
    on_disk: set[tuple[int, int]] = set()
    for line in trace:
        if line.event == "ended":
            on_disk.add((line.trial, line.epoch))
        else:
            assert (line.trial, line.epoch) not in on_disk, f"trained again: {line}"
    trained = {(line.trial, line.epoch) for line in begun}
    assert trained == {(trial.number, epoch) for trial in trials for epoch in trial.intermediate_values}
    for repeated in (Counter((line.attempt, line.trial, line.epoch) for line in begun)).values():
        assert repeated == 1
    repeats = len(begun) - len(trained)
    assert repeats <= search.kills * search.slots
    assert len(begun) <= 1.5 * len(trained)
    print(f"{search.kills} kills: {len(trained)} epochs, {repeats} of them begun again")


def placed() -> DeviceImages:
    images = DataConfig().load()
    return DeviceImages.to_device(images, "gaussian:30", torch.device("cpu"), num_validation=SEARCH_VALIDATION_IMAGES)


@pytest.fixture
def one_thread():
    """One thread, as trials with one CPU have; sums in other orders round differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def assert_the_winner_is_what_the_record_says(search: Killed, images: DeviceImages) -> None:
    record = search.record
    number = search_results.winner(record)
    assert number in leaderboard.finalists(record.trials(), record.search)
    best = leaderboard.best_report(record.trial(number), "balanced")
    generator, state = load_generator(record.trial_folder(number) / BEST, channels=1, image_size=32)  # by its digest
    assert len(state["reports"]) == best.epoch
    measured = validate(generator, images)
    assert measured == pytest.approx({name: getattr(best, name) for name in measured}, rel=1e-5)


def undisturbed(search: SearchConfig, folder: Path, images: DeviceImages) -> Record:
    """Make the same decisions and trainings in one plain loop, without Ray and restarts."""
    record = Record.create(folder, "first", search)
    loop = controller(record, space=SPACE)
    while (trial := loop.next_trial()) is not None:
        config = TrainConfig.from_dict(trial.user_attrs[trial_attributes.CONFIG])
        run = TrainingRun(config, images, record.trial_folder(trial.number), "balanced")
        run.run_epoch()
        while loop.on_report(trial.number, run.reports).action == "continue":
            run.run_epoch()
    return record
