"""How a search ends: by signals, by the death of Ray, beside a second driver. Real processes; nothing may be left."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from disks import disk
from drivers import GUARD_SECONDS, HPO, Driver, driver, num_reports

from hpo.store.record import Record

OPTIONS = ["--trials", "99", "--epochs", "9", "--images-per-epoch", "256", "--pruner", "none", "--max-concurrent", "1"]
OPTIONS += ["--set", "width=4", "--set", "dropout=0", "--set", "batch_size=16"]
SEARCH = [*OPTIONS, "--wandb", "disabled"]
CONTINUED = r"; the search can be continued: hpo search first\n"
pytestmark = pytest.mark.timeout(3 * GUARD_SECONDS)


class Search:
    """One that has just written its first report."""

    def __init__(self, running: Driver) -> None:
        self.driver, self.process = running, running.process
        self.ray_folders = running.ray_folders()
        assert self.ray_folders

    def kill(self, name: str) -> None:
        (process,) = (process for process in self.driver.processes() if process.name() == name)
        process.kill()

    def end(self) -> tuple[int, str]:
        """Exit code and stderr, and nothing is left: neither processes nor Ray's folder."""
        _, errors = self.process.communicate(timeout=GUARD_SECONDS)
        since = time.monotonic()
        assert self.driver.left_after(seconds=10) == []
        print(f"nothing left after {time.monotonic() - since:.1f} s")
        assert [folder for folder in self.ray_folders if Path(folder).exists()] == []
        return self.process.returncode, errors


@contextmanager
def searching(folder: Path, options: list[str]) -> Iterator[Search]:
    before = num_reports(folder)
    with driver(folder, options) as running:
        running.wait_for(lambda: num_reports(folder) > before)
        yield Search(running)


def assert_stopped(ended: tuple[int, str], code: int, why: str) -> None:
    """One line that names the command that goes on; no traceback."""
    assert ended[0] == code, ended[1]
    assert re.search(why + CONTINUED, ended[1])
    assert "Traceback" not in ended[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one search; every test continues it, and takes over the lock of a driver that is gone."""
    return tmp_path_factory.mktemp("search")


def test_a_second_driver_is_turned_away_and_ctrl_c_saves_and_names_the_command_that_continues(folder):
    """As a terminal sends it: to the whole process group."""
    with searching(folder, SEARCH) as search:
        command = [HPO, "search", "first", *SEARCH]
        second = subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True, timeout=GUARD_SECONDS)
        assert second.returncode == 2
        assert re.search(rf"first: is being run by process {search.process.pid} on \S+", second.stderr)
        assert search.process.poll() is None
        subprocess.run(["kill", "-INT", "--", f"-{search.process.pid}"], check=True)
        assert_stopped(search.end(), 130, "Interrupted")


def test_a_dead_head_ends_the_search_with_75(folder):
    with searching(folder, SEARCH) as search:
        search.kill("gcs_server")
        since = time.monotonic()
        ended = search.end()
        print(f"out after {time.monotonic() - since:.1f} s")
        assert_stopped(ended, 75, "Ray's head is gone")


def test_a_second_ctrl_c_does_not_wait(folder, tmp_path):
    """The first one would: for W&B's process, which hangs."""
    with searching(tmp_path, [*OPTIONS, "--wandb", "offline"]) as search:
        for process in search.driver.processes():
            if "wandb" in process.name():
                process.suspend()
        search.process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            search.process.wait(timeout=3)
        search.process.send_signal(signal.SIGINT)
        search.process.wait(timeout=5)
        assert_stopped(search.end(), 130, "Interrupted")


def test_hpo_stop_saves_and_ends_it_with_143(folder):
    with searching(folder, SEARCH) as search:
        subprocess.run([HPO, "stop", "first"], check=True, cwd=folder)  # by SIGTERM
        assert_stopped(search.end(), 143, "Terminated")


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1.0, 4.0, 7.0])
def test_signals_while_ray_starts(tmp_path, seconds):
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with driver(tmp_path, SEARCH) as running:
            running.wait_for(lambda: any(process.name() == "gcs_server" for process in running.processes()))
            folders = running.ray_folders()
            time.sleep(seconds)
            running.process.send_signal(number)
            _, errors = running.process.communicate(timeout=GUARD_SECONDS)
            assert (running.process.returncode, "Traceback" in errors) == (code, False), errors
            assert running.left_after(seconds=10) == []
            assert not any(Path(folder).exists() for folder in folders)


TERMINATES_ITSELF = """
import os, signal, sys, ray
make = ray._raylet.CoreWorker
def made_and_terminated(*args, **options):
    made = make(*args, **options)
    os.kill(os.getpid(), signal.SIGTERM)
    return made
ray._raylet.CoreWorker = made_and_terminated
from hpo.cli.commands import main
sys.exit(main(["search", "first", *sys.argv[1:]]))
"""


@pytest.mark.slow
def test_sigterm_inside_rays_start_is_answered_by_us(tmp_path):
    with driver(tmp_path, SEARCH, (sys.executable, "-c", TERMINATES_ITSELF)) as running:
        _, errors = running.process.communicate(timeout=GUARD_SECONDS)
        assert_stopped((running.process.returncode, errors), 143, "Terminated")
        assert running.left_after(seconds=10) == []


@pytest.mark.slow
def test_a_dead_raylet_ends_the_search_with_75(folder):
    """No trial is to blame."""
    with searching(folder, SEARCH) as search:
        search.kill("raylet")
        ended = search.end()
        assert_stopped(ended, 75, "Ray's head is gone")
        assert "died" not in ended[1]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """As much as a few checkpoints need."""
    with disk(tmp_path / "runs", megabytes=16):
        yield tmp_path


def test_a_full_disk_ends_the_search_with_4_and_costs_no_trial(small_disk):
    filler = small_disk / "runs" / "filler"
    with searching(small_disk, SEARCH) as search:
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass
        code, errors = search.end()
    assert code == 4, errors
    assert "Traceback" not in errors
    assert re.search(
        r"^hpo: disk full at \S*runs/first/\S+; free some space, then run the same command to continue$",
        errors,
        re.MULTILINE,
    )
    filler.unlink()
    with searching(small_disk, SEARCH):
        trials = Record(small_disk / "runs", "first").trials()
    assert [trial.state.name for trial in trials].count("FAIL") == 0
