"""Real searches with a storage, whose hosts are lost, cut off, or lose the storage."""

from __future__ import annotations

import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import s3_server
import stored_search
from curves import essence
from drivers import GUARD_SECONDS, Driver, driver, leaked
from killed_search import Killed, one_thread, placed, traced, undisturbed
from storages import EXPIRING, KINDS, Place, place

from hpo.policy import leaderboard, trial_attributes
from hpo.store import file_names, search_results
from hpo.store.object_storage import Storage, Stored
from hpo.store.record import Record
from hpo.store.study_replication import open_read_only
from model.data.data_config import DataConfig
from model.denoise import Denoiser
from model.export_quality import evaluate
from model.trainer import load_generator, validate
from model.training_files import BEST
from model.training_report import EvalReport

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3 * GUARD_SECONDS)]
__all__ = ["one_thread"]  # a fixture
CANARY = "canary5f0c9e3b7a"


@dataclass
class Search:
    """One trial at a time, of a search in a storage."""

    there: Place
    folder: Path
    what: Killed  # what is asked for, and the trace of its epochs

    @contextmanager
    def on(self, host: str, patience: float = 60) -> Iterator[Driver]:
        """A driver with a runs folder of its own."""
        options = [str(patience), *self.what.options, "--storage", self.there.address, "--runs", host]
        with driver(self.folder, options, (sys.executable, stored_search.__file__)) as running:
            yield running

    def ends(self, host: str, code: int = 0) -> str:
        with self.on(host) as running:
            return ended(running, code)

    @contextmanager
    def record(self) -> Iterator[Record]:
        with open_read_only(self.folder / "seen", "first", Storage(self.there.address)) as record:
            yield record

    def begun(self, epochs: int) -> Callable[[], bool]:
        """Whether so many more have."""
        epochs += len(self.what.began())
        return lambda: len(self.what.began()) >= epochs

    def files(self) -> dict[str, Stored]:
        return Storage(self.there.address).names("first")


def ended(running: Driver, code: int) -> str:
    """Its stderr."""
    _, errors = running.process.communicate(timeout=GUARD_SECONDS)
    assert running.process.returncode == code, errors
    assert "Traceback" not in errors
    assert running.left_after(seconds=10) == []
    return errors


@pytest.fixture(params=KINDS)
def search(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Search]:
    what = Killed(folder=tmp_path, kills=2, slots=1, trials=5, epochs=3, images=256, pruner="asha")
    with place(request.param, tmp_path) as there, traced(tmp_path), pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTEMPT", "0")
        patch.setenv("SOME_SECRET", CANARY)
        yield Search(there, tmp_path, what)


def assert_as_undisturbed(search: Search, tmp_path: Path) -> None:
    """The same trials, decisions and leaderboard; the best checkpoint is whole and gives the recorded figures; the
    export, too."""
    images = placed()
    with search.record() as record:
        plain = undisturbed(record.search, tmp_path / "plain", images)
        assert essence(record.trials()) == essence(plain.trials())
        boards = [leaderboard.leaderboard(each.trials(), "balanced") for each in (record, plain)]
        ranks = [[(row["number"], row["ssim"], row["psnr_db"]) for row in board] for board in boards]
        assert ranks[0] == ranks[1]
        assert all(trial_attributes.FAILURES not in trial.user_attrs for trial in record.trials())
        number = search_results.winner(record)
        path = record.fetch(record.trial_folder(number) / BEST)
        generator, state = load_generator(path, channels=1, image_size=32)  # by its digest
        best = leaderboard.best_report(record.trial(number), "balanced")
        assert EvalReport.from_dict(state["reports"][-1]).ssim == best.ssim
        measured = validate(generator, images)
        assert measured == pytest.approx({name: getattr(best, name) for name in measured}, rel=1e-5)
        denoiser = Denoiser(record.fetch(record.folder / file_names.EXPORT))  # by its digests
        few = DataConfig().load_test()[:200]
        assert evaluate(denoiser, few, "gaussian:30", "test")["denoised"]["ssim"] > 0
        assert denoiser.manifest["origin"]["trial"] == number


@pytest.mark.usefixtures("one_thread")
def test_a_search_goes_on_from_the_storage_alone_when_its_host_is_lost(search, tmp_path):
    """Twice, with all that was on it."""
    for host, epochs in (("first", 3), ("second", 3)):
        with search.on(host) as running:
            running.wait_for(search.begun(epochs))
            running.process.kill()
            running.process.wait()
            running.left_after(seconds=10)
    search.ends("third")
    assert_as_undisturbed(search, tmp_path)
    assert leaked({"SOME_SECRET": CANARY, "the storage's key": s3_server.SECRET}, tmp_path) == set()
    times = Counter((line.trial, line.epoch) for line in search.what.began())
    assert sum(times.values()) - len(times) <= 2  # an epoch was under way each time


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("search", [*KINDS, EXPIRING], indirect=True)
def test_a_storage_that_is_away_is_waited_for_and_then_left_with_75(search, tmp_path):
    with search.on("host") as running:
        running.wait_for(search.begun(2))
        search.there.goes_away()
        time.sleep(5)
        assert running.process.poll() is None
        search.there.comes_back()
        running.wait_for(search.begun(3))
        running.process.send_signal(signal.SIGINT)
        ended(running, 130)
    with search.on("host", patience=3) as running:
        running.wait_for(search.begun(2))
        search.there.goes_away()
        errors = ended(running, 75)
        assert f"hpo search first --runs host --storage {search.there.address.split('?')[0]}" in errors.replace("'", "")
    search.there.comes_back()
    search.ends("another")
    assert_as_undisturbed(search, tmp_path)


@pytest.mark.usefixtures("one_thread")
def test_an_old_head_that_comes_back_stops_and_changes_nothing(search, tmp_path):
    with search.on("old") as old:
        old.wait_for(search.begun(2))
        old.process.send_signal(signal.SIGSTOP)
        search.ends("new")
        before = search.files()
        old.process.send_signal(signal.SIGCONT)
        assert "has taken this search over; the search can be continued" in ended(old, 75)
    assert search.files() == before
    assert_as_undisturbed(search, tmp_path)


def test_a_second_driver_elsewhere_is_turned_away(search):
    with search.on("first") as running:
        running.wait_for(search.begun(1))
        assert f"is being run by process {running.process.pid} on" in search.ends("second", code=2)
        running.process.send_signal(signal.SIGTERM)
        ended(running, 143)
