"""Records to play with."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import ray
from curves import SEARCH, controller, run_all
from plain_search import command, photographs, without_ray
from saying import RayStartedError

from hpo.cli.commands import main
from hpo.policy.search_config import SearchConfig
from hpo.store.record import Record


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """None starts, whatever is asked."""

    def refuse(*_: object, **__: object) -> None:
        raise RayStartedError("Ray was started")

    monkeypatch.setattr(ray, "init", refuse)


@pytest.fixture
def in_an_empty_folder(no_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Ray."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def search() -> SearchConfig:
    return SEARCH


@pytest.fixture
def record(runs: Path) -> Record:
    """A new one, with SEARCH."""
    return Record.create(runs, "first", SEARCH)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """SEARCH, done in one go. To be read, not to be changed."""
    record = Record.create(tmp_path_factory.mktemp("undisturbed"), "first", SEARCH)
    run_all(controller(record))
    return record


@pytest.fixture
def done(runs: Path, undisturbed: Record) -> Record:
    """A copy of it."""
    shutil.copytree(undisturbed.folder, runs / "first")
    return Record(runs, "first")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a few images."""
    return photographs(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="session")
def searched_plainly(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of an undisturbed search of them, without Ray, exported. To be read, not to be changed."""
    runs = tmp_path_factory.mktemp("searched") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch, exports=True)
        assert main(command(pictures, runs)) == 0
    return runs


@pytest.fixture
def plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    """`hpo search` without Ray and export."""
    without_ray(monkeypatch)
